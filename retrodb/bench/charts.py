"""Line charts by matplotlib: as SVG for a page, or side by side as a picture.

matplotlib is the extra `plots`, and is imported only when a chart is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import MissingDependency
from retrodb.format.arrays import Float64Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2a9d6f", "#d9622b", "#5b7be0", "#b08a00")  # readable on a light and on a dark page
_INK = "#010203"  # stands for the colour of the page's text, which only the page knows


@dataclass(frozen=True)
class Curve:
    """One line of a chart, of N points; a point that is not finite is left out."""

    name: str  # for the legend
    x: Sequence[float] | Float64Array  # (N,)
    y: Sequence[float] | Float64Array  # (N,)
    band: tuple[Sequence[float], Sequence[float]] | None = None  # (N,) low and (N,) high: an interval around the line
    has_markers: bool = False  # whether each point is marked


@dataclass(frozen=True)
class LineChart:
    """Curves over common axes."""

    name: str  # distinguishes the chart in its page
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    is_x_logarithmic: bool = False
    is_x_fraction: bool = False  # whether x is labelled in percent
    y_max: float | None = None  # upper end of the axis, which no value exceeds; None fits it to the curves

    @property
    def is_empty(self) -> bool:
        """Whether no curve has a finite point."""
        return not any(np.isfinite(curve.y).any() for curve in self.curves)


def require_matplotlib() -> None:
    """Refuse a report with charts before anything is measured for it.

    Raises:
        MissingDependency: when matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "charts in HTML and PNG reports need matplotlib", remedy="Run: pip install 'retrodb[plots]'."
        ) from error


def chart_svg(chart: LineChart) -> str:
    """The chart as an `<svg>` element for a page: it takes the page's text colour and loads nothing.

    Raises:
        MissingDependency: when matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    content = StringIO()
    with _page_style():
        figure = Figure(figsize=(6.7, 3.0), layout="constrained")
        _draw(figure.subplots(), chart)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=no_metadata)
    return _inline(content.getvalue(), chart.name)


def write_png(path: Path, title: str, charts: Sequence[LineChart]) -> None:
    """Draw charts side by side under a title.

    Raises:
        MissingDependency: when matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(charts), 4.5), layout="constrained")
    for axes, chart in zip(np.atleast_1d(figure.subplots(1, len(charts))), charts, strict=True):
        _draw(axes, chart)
    figure.suptitle(title, parse_math=False)  # a name may contain a dollar sign
    figure.savefig(path, format="png", dpi=120)


def _page_style() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context(
        {
            "text.color": _INK,
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
            "svg.hashsalt": "retrodb",  # equal charts are equal bytes
        }
    )


def _draw(axes: Axes, chart: LineChart) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

    for number, curve in enumerate(chart.curves):
        colour = _COLOURS[number % len(_COLOURS)]
        is_finite = np.isfinite(curve.y)
        x, y = np.asarray(curve.x)[is_finite], np.asarray(curve.y)[is_finite]
        marker = "o" if curve.has_markers or len(x) == 1 else ""  # a line of one point would not be seen
        axes.plot(x, y, color=colour, marker=marker, label=curve.name, gid=f"curve-{number}", clip_on=False)
        if curve.band is not None:
            low, high = (np.asarray(limits)[is_finite] for limits in curve.band)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(axis="y", alpha=0.2, color=_INK)
    if chart.is_x_logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if chart.is_x_fraction:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if chart.y_max is not None:
        axes.set_ylim(top=chart.y_max)
    if len(chart.curves) > 1:
        axes.legend(frameon=False)


def _inline(svg: str, name: str) -> str:
    """matplotlib's file as an element that may stand in a page with others."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r' (xmlns(:\w+)?|clip-path)="[^"]*"', "", svg)  # nothing is drawn outside of the axes
    return re.sub(r'( id="|href="#)', rf"\1{name}-", svg)
