"""A recall report as a file: JSON, an HTML page that needs no other file, or a PNG picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from retrodb.bench.charts import Curve, LineChart, require_matplotlib, write_png
from retrodb.bench.html_page import render_template
from retrodb.errors import UsageError

if TYPE_CHECKING:
    from retrodb.ann.recall_curve import CurvePoint
    from retrodb.bench.recall import RecallReport

Writer = Callable[["RecallReport", Path], None]

_NOT_FACTS = ("curve", "points", "environment")  # fields of the report that the page shows in tables of their own


def writer_of(path: Path) -> Writer:
    """The function that writes the kind of report that the path names by its ending.

    Raises:
        UsageError: for an ending other than .json, .html and .png.
        MissingDependency: for .html and .png without matplotlib.
    """
    writers: dict[str, Writer] = {".json": write_json_report, ".html": write_html_report, ".png": write_png_report}
    if path.suffix not in writers:
        raise UsageError(f"'{path.name}' is no kind of report", remedy=f"End the name in {', '.join(writers)}.")
    if path.suffix != ".json":
        require_matplotlib()
    return writers[path.suffix]


def write_json_report(report: RecallReport, path: Path) -> None:
    """Write all of the report as one JSON object."""
    path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write_png_report(report: RecallReport, path: Path) -> None:
    """Write the charts. Raises MissingDependency without matplotlib."""
    write_png(path, _title(report), _charts(report))


def write_html_report(report: RecallReport, path: Path) -> None:
    """Write a page with the charts, the measured points, and the setting. Raises MissingDependency without matplotlib."""
    page = render_template(
        "bench/report.html.jinja",
        title=_title(report),
        report=report,
        charts=_charts(report),
        curve_points=_curve_points(report),
        facts=list(_facts(report)),
    )
    path.write_text(page, encoding="utf-8")


def _charts(report: RecallReport) -> tuple[LineChart, LineChart]:
    recall = f"recall@{report.k}"
    scan = Curve(
        "lists scanned",
        [point.scanned for point in report.curve],
        [point.recall.mean for point in report.curve],
        band=([point.recall.low for point in report.curve], [point.recall.high for point in report.curve]),
    )
    recalls = [point.recall.mean for point in report.points]
    warm = Curve("warm", [point.warm_queries_per_s for point in report.points], recalls, has_markers=True)
    cold = Curve("cold", [point.cold_queries_per_s for point in report.points], recalls, has_markers=True)
    return (
        LineChart("scan", [scan], "vectors scanned per query", recall, is_x_logarithmic=True, y_max=1.0),
        LineChart("speed", [warm, cold], "queries per second", recall, is_x_logarithmic=True, y_max=1.0),
    )


def _curve_points(report: RecallReport) -> list[CurvePoint]:
    """The curve at doubling numbers of lists, and at its end."""
    return [p for p in report.curve if p.nprobe & (p.nprobe - 1) == 0 or p is report.curve[-1]]


def _facts(report: RecallReport) -> Iterator[tuple[str, str]]:
    """The setting of the measurement: names and values."""
    for name, value in vars(report).items():
        if name not in _NOT_FACTS and value is not None:
            yield (
                name.removeprefix("num_").replace("_", " "),
                f"{value:.4g}" if isinstance(value, float) else str(value),
            )


def _title(report: RecallReport) -> str:
    return f"recall@{report.k} of {report.factory} over {report.num_vectors:,} vectors (space {report.space})"
