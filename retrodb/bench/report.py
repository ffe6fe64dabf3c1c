"""A recall report as JSON, as one page that needs nothing else, or as a picture."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from retrodb.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from retrodb.bench.recall import RecallReport, TimedPoint

Writer = Callable[["RecallReport", Path], None]

_WIDTH, _HEIGHT, _MARGIN = 520, 320, 60
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:70em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
    "svg{margin-right:1em}"
)


def writer_of(path: Path) -> Writer:
    """What writes a file of this name. Raises UsageError for an ending that is none of .json, .html and .png."""
    writers: dict[str, Writer] = {".json": write_json, ".html": write_html, ".png": write_png}
    if path.suffix not in writers:
        raise UsageError(f"'{path.name}' names no kind of report", remedy=f"End it in {', '.join(writers)}.")
    return writers[path.suffix]


def write_json(report: RecallReport, path: Path) -> None:
    """Everything, as one JSON object."""
    path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write_png(report: RecallReport, path: Path) -> None:
    """The two plots, by matplotlib. Raises MissingDependency when it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "matplotlib is not installed", remedy="pip install 'retrodb[plots]', or write .html, which needs nothing."
        ) from error
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    scan, speed = figure.subplots(1, 2)
    x = [point.scanned for point in report.curve]
    scan.fill_between(x, [p.recall.low for p in report.curve], [p.recall.high for p in report.curve], alpha=0.25)
    scan.plot(x, [point.recall.mean for point in report.curve])
    scan.set(xscale="log", xlabel="vectors scanned per query", ylabel=f"recall@{report.k}")
    for name, rate in _RATES:
        speed.plot([rate(point) for point in report.points], [p.recall.mean for p in report.points], "o-", label=name)
    speed.set(xscale="log", xlabel="queries per second", ylabel=f"recall@{report.k}")
    speed.legend()
    figure.suptitle(_title(report))
    figure.savefig(path, format="png", dpi=120)


def write_html(report: RecallReport, path: Path) -> None:
    """A page with the plots, the timed points, and what they were measured on."""
    curve = [(p.scanned, p.recall.mean) for p in report.curve]
    band = [(p.scanned, p.recall.low) for p in report.curve], [(p.scanned, p.recall.high) for p in report.curve]
    speeds = [(name, [(rate(p), p.recall.mean) for p in report.points]) for name, rate in _RATES]
    facts = {
        name: value
        for name, value in vars(report).items()
        if name not in ("curve", "points", "environment") and value is not None
    }
    body = [
        f"<h1>{html.escape(_title(report))}</h1>",
        _plot([("lists scanned", curve)], "vectors scanned per query", report.k, band),
        _plot(speeds, "queries per second", report.k),
        "<h2>Timed points</h2>",
        _table(_POINT_COLUMNS, [_point_cells(point) for point in report.points]),
        "<p>Recall with its 95% interval. Throughput of one batch of all queries; latency of single queries.</p>",
        "<h2>Lists scanned, nothing timed</h2>",
        _table(("lists", "vectors scanned", "recall", "95% interval"), _curve_rows(report)),
        "<h2>Measured on</h2>",
        _table(("what", "value"), [(_words(name), _plain(value)) for name, value in facts.items()]),
        _table(("environment", ""), list(report.environment.items())),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(_title(report))}</title>"
    path.write_text(f"{head}<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</html>\n", encoding="utf-8")


_RATES: tuple[tuple[str, Callable[[TimedPoint], float]], ...] = (
    ("warm", lambda point: point.warm_queries_per_s),
    ("cold", lambda point: point.cold_queries_per_s),
)
_POINT_COLUMNS = (
    *("lists", "recall", "95% interval", "vectors scanned", "queries/s warm", "queries/s cold"),
    *("p50 / p95 / p99 ms warm", "p50 / p95 / p99 ms cold"),
)


def _point_cells(point: TimedPoint) -> tuple[str, ...]:
    latencies = [
        " / ".join(f"{1000 * value:.2f}" for value in (each.p50_s, each.p95_s, each.p99_s))
        for each in (point.warm_latency, point.cold_latency)
    ]
    interval = f"{point.recall.low:.4f} to {point.recall.high:.4f}"
    rates = f"{point.warm_queries_per_s:,.0f}", f"{point.cold_queries_per_s:,.0f}"
    return str(point.nprobe), f"{point.recall.mean:.4f}", interval, f"{point.scanned:,.0f}", *rates, *latencies


def _curve_rows(report: RecallReport) -> list[tuple[str, ...]]:
    """The curve at doubling numbers of lists, and at its end."""
    chosen = [p for p in report.curve if p.nprobe & (p.nprobe - 1) == 0 or p is report.curve[-1]]
    return [
        (str(p.nprobe), f"{p.scanned:,.0f}", f"{p.recall.mean:.4f}", f"{p.recall.low:.4f} to {p.recall.high:.4f}")
        for p in chosen
    ]


def _title(report: RecallReport) -> str:
    return f"recall@{report.k} of {report.factory} over {report.vectors:,} vectors (space {report.space})"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(each)}</th>" for each in columns)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


Points = Sequence[tuple[float, float]]


def _plot(series: Sequence[tuple[str, Points]], label: str, k: int, band: tuple[Points, Points] | None = None) -> str:
    """Recall over a logarithmic axis, as SVG."""
    xs = [math.log10(max(x, 1e-9)) for _, points in series for x, _ in points]
    low, high = min(xs), max(xs)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    bottom = math.floor(10 * min(y for _, points in series for _, y in points)) / 10
    bottom = min(bottom, 0.9)

    def place(point: tuple[float, float]) -> str:
        x = _MARGIN + (math.log10(max(point[0], 1e-9)) - low) / (high - low) * (_WIDTH - 2 * _MARGIN)
        y = _HEIGHT - _MARGIN - (point[1] - bottom) / (1 - bottom) * (_HEIGHT - 2 * _MARGIN)
        return f"{x:.1f},{min(y, _HEIGHT - _MARGIN):.1f}"

    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT}" font-size="12" role="img">']
    for tick in range(5):
        y = bottom + (1 - bottom) * tick / 4
        _, height = place((10**low, y)).split(",")
        parts.append(f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{height}" y2="{height}" stroke="#ddd"/>')
        parts.append(f'<text x="{_MARGIN - 6}" y="{height}" dy="4" text-anchor="end">{y:.3g}</text>')
    for x in range(math.ceil(low), math.floor(high) + 1):
        across, _ = place((10.0**x, bottom)).split(",")
        parts.append(f'<text x="{across}" y="{_HEIGHT - _MARGIN + 18}" text-anchor="middle">{10.0**x:,g}</text>')
    if band:
        outline = " ".join(map(place, [*band[0], *reversed(band[1])]))
        parts.append(f'<polygon points="{outline}" fill="#1f77b4" opacity="0.2"/>')
    for (name, points), colour in zip(series, ("#1f77b4", "#d62728"), strict=False):
        parts.append(
            f'<polyline points="{" ".join(map(place, points))}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        if len(series) > 1:
            dots = (place(point).split(",") for point in points)
            parts += [
                f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"><title>{name}</title></circle>' for x, y in dots
            ]
    legend = ", ".join(name for name, _ in series) + " (blue first)" if len(series) > 1 else ""
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 14}" text-anchor="middle">{label} {legend}</text>')
    parts.append(f'<text x="{_MARGIN}" y="{_MARGIN - 24}">recall@{k}</text></svg>')
    return "".join(parts)
