"""The validation report as one HTML file: nothing is loaded from elsewhere, and every text in it is escaped.

Shapes: Q held-out chunks of m tokens.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.format.arrays import Float64Array
from retrodb.retro.evaluate import CONDITIONS, Estimate

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 260, 56, 34  # of a drawing, in CSS pixels
_COLOURS = ("#0b6e4f", "#c1440e", "#4a5fc1", "#8a6d00")
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --faint: #6b6b6b; --rule: #d8d8d8; --mark: #ffe08a; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #16181b; --ink: #e8e8e8; --faint: #a0a0a0; --rule: #3a3d42; --mark: #6b5300; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } .faint { color: var(--faint); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; }
td, th { padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { width: 100%; height: auto; } svg text { fill: var(--faint); font-size: 12px; } svg .axis { stroke: var(--rule); }
blockquote { margin: .4rem 0; padding: .1rem 0 .1rem .8rem; border-left: 3px solid var(--rule);
  white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: var(--mark); color: inherit; }
"""


@dataclass(frozen=True)
class Passage:
    """A text with one stretch of it marked."""

    before: str
    marked: str
    after: str


@dataclass(frozen=True)
class Example:
    """A held-out chunk, and what the model was shown of the database while it read it."""

    doc_id: str
    chunk: Passage
    neighbour_doc_id: str
    neighbour: Passage  # chunk and continuation
    shared_tokens: int  # the marked stretch in both
    bits_on: float  # of the chunk, by the retrieving model
    bits_without: float  # by the one trained without


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    verdict: str
    setting: Sequence[tuple[str, str]]  # name and value
    bits_per_byte: Mapping[str, Estimate]  # by condition
    gain: Mapping[str, Estimate]  # by condition other than on
    losses: Mapping[str, Sequence[float]]  # by model, nats per token of each step
    leakage: Mapping[
        str, Float64Array
    ]  # by condition, bits per byte of the chunks with r(C) <= 0, 1/m, ... 1; nan for none
    chunks_by_run: Sequence[int]  # (m + 1,) chunks whose longest shared run has 0, 1, ... m tokens
    helped: Sequence[Example]
    hindered: Sequence[Example]


def render_page(report: Report) -> str:
    """The whole page."""
    m = len(report.chunks_by_run) - 1
    total = max(1, sum(report.chunks_by_run))
    marked = sum(report.chunks_by_run[-(-m // 8) :])
    alphas = np.arange(m + 1) / m
    curves = {name: (alphas, values) for name, values in report.leakage.items()}
    sections = [
        f"<h1>{_text(report.title)}</h1><p>{_text(report.verdict)}</p>",
        _table(["", ""], ([_text(name), _text(value)] for name, value in report.setting)),
        "<h2>Bits per byte on held-out documents</h2>",
        _table(
            ["condition", "bits per byte", "95% from", "to", "more than with retrieval"],
            (_condition(name, it, report.gain.get(name)) for name, it in report.bits_per_byte.items()),
        ),
        '<p class="faint">The intervals are over documents. The last column is paired by document.</p>',
        "<h2>Training</h2>",
        _chart({name: _smoothed(values) for name, values in report.losses.items()}, "step", "nats per token"),
        "<h2>Leakage</h2>",
        "<p>r(C) is the longest run of tokens that a chunk shares with one of its ten nearest neighbours, over the tokens of a"
        " chunk. The curve gives bits per byte of the chunks with r(C) up to a limit: a gain at the left end is not made by"
        f" copying. {marked / total:.1%} of the chunks have an r(C) of 12.5% or more.</p>",
        _chart(curves, "r(C) at most", "bits per byte", percent=True),
        *_examples("Where retrieval helped most", report.helped),
        *_examples("Where it helped least", report.hindered),
    ]
    head = f'<meta charset="utf-8"><title>{_text(report.title)}</title><style>{_STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(sections)
    return f'<!doctype html>\n<html lang="en"><head>{head}{viewport}</head>\n<body>\n{body}\n</body></html>\n'


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _condition(name: str, it: Estimate, gain: Estimate | None) -> list[str]:
    more = "" if gain is None else f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
    numbers = [f"{it.value:.4f}", f"{it.low:.4f}", f"{it.high:.4f}", more]
    return [f'{_text(name)}<br><span class="faint">{_text(CONDITIONS.get(name, ""))}</span>', *numbers]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; all but a row's first are numbers where there are more than two."""
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    kind = ' class="number"' if len(names) > 2 else ""
    body = "".join(
        f"<tr><td>{row[0]}</td>" + "".join(f"<td{kind}>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if any(names) else ''}{body}</table>"


def _smoothed(values: Sequence[float], points: int = 100) -> tuple[Float64Array, Float64Array]:
    """Steps and mean losses, of about so many stretches."""
    if not len(values):
        return np.zeros(0), np.zeros(0)
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(points, len(values)))
    ends = np.cumsum([len(part) for part in parts]).astype(np.float64)
    return ends, np.array([part.mean() for part in parts])


def _chart(
    curves: Mapping[str, tuple[Float64Array, Float64Array]], x_name: str, y_name: str, percent: bool = False
) -> str:
    """An inline SVG with one line a curve; values that are no number are left out."""
    drawn = {name: (x[np.isfinite(y)], y[np.isfinite(y)]) for name, (x, y) in curves.items()}
    points = [pair for pair in drawn.values() if len(pair[0])]
    if not points:
        return '<p class="faint">There is nothing to draw.</p>'
    (x0, x1), (y0, y1) = (_range(np.concatenate(values)) for values in zip(*points, strict=True))

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - 10)
        return f"{across:.1f},{10 + (y1 - y) / (y1 - y0) * (_HEIGHT - _BOTTOM - 10):.1f}"

    floor = _HEIGHT - _BOTTOM
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(y_name)} by {_text(x_name)}">']
    parts += [f'<path class="axis" fill="none" d="M{_LEFT},10 V{floor} H{_WIDTH - 10}"/>']
    for share in (0.0, 0.5, 1.0):
        y, x = y0 + share * (y1 - y0), x0 + share * (x1 - x0)
        shown = f"{x:.0%}" if percent else f"{x:,.0f}"
        height, across = place(x0, y).split(",")[1], place(x, y0).split(",")[0]
        parts += [f'<text x="{_LEFT - 6}" y="{height}" text-anchor="end" dominant-baseline="middle">{y:.3g}</text>']
        parts += [
            f'<text x="{across}" y="{floor + 16}" text-anchor="{("start", "middle", "end")[int(share * 2)]}">{shown}</text>'
        ]
    for number, (name, (xs, ys)) in enumerate(drawn.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(place(*pair) for pair in zip(xs.tolist(), ys.tolist(), strict=True))
        parts += [f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>']
        parts += [
            f'<text x="{_WIDTH - 14}" y="{24 + 16 * number}" text-anchor="end" style="fill:{colour}">{_text(name)}</text>'
        ]
    parts += [f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 2}" text-anchor="middle">{_text(x_name)}</text></svg>']
    return "".join([f'<p class="faint">{_text(y_name)}</p>', *parts])


def _range(values: Float64Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _examples(title: str, examples: Sequence[Example]) -> list[str]:
    shown = [f"<h2>{_text(title)}</h2>"]
    if not examples:
        shown.append('<p class="faint">No held-out chunk was read with a neighbour.</p>')
    for each in examples:
        saved = each.bits_without - each.bits_on
        head = f"{each.bits_without:,.0f} bits without, {each.bits_on:,.0f} with retrieval: {saved:+,.0f} saved"
        shared = f"{each.shared_tokens} tokens in a row shared" if each.shared_tokens else "no token shared"
        shown += [
            f"<p>{_text(each.doc_id)} <span class='faint'>({head}; {shared})</span></p>{_passage(each.chunk)}",
            f"<p class='faint'>shown while it was read: {_text(each.neighbour_doc_id)}</p>{_passage(each.neighbour)}",
        ]
    return shown


def _passage(it: Passage) -> str:
    marked = f"<mark>{_text(it.marked)}</mark>" if it.marked else ""
    return f"<blockquote>{_text(it.before)}{marked}{_text(it.after)}</blockquote>"
