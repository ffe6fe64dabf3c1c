"""Reports as one HTML page that needs no other file: Jinja2 templates next to the modules that fill them.

Every value is escaped, whatever a document or a name contains.
"""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retrodb.bench.charts import LineChart, chart_svg


def render_template(name: str, **values: object) -> str:
    """The page of a template, named by its path in the package: `bench/report.html.jinja`.

    Raises:
        MissingDependency: when the page has a chart and matplotlib is not installed.
    """
    return _environment().get_template(name).render(values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("retrodb", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": _count, "fixed": _fixed, "signed": _signed, "svg": _svg}
    return environment


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _fixed(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}"


def _signed(value: float, digits: int = 4) -> str:
    return f"{value:+,.{digits}f}"


def _svg(chart: LineChart) -> Markup:
    return Markup(chart_svg(chart))  # matplotlib escapes the texts in it
