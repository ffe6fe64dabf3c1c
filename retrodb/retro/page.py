"""The validation report as one HTML page. Nothing in it is loaded from elsewhere, and every text in it is escaped.

Shapes: Q held-out chunks of m tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.bench.charts import Curve, LineChart
from retrodb.bench.html_page import render_template
from retrodb.format.arrays import Float64Array
from retrodb.retro.evaluate import CONDITIONS, BitsPerByte

_LOSS_POINTS = 100  # of a training curve: more than this is noise


@dataclass(frozen=True)
class MarkedText:
    """A text with one part of it marked."""

    before: str
    marked: str
    after: str


@dataclass(frozen=True)
class ChunkExample:
    """A held-out chunk, and the neighbour that the model was shown while it read the chunk."""

    doc_id: str
    chunk: MarkedText
    neighbour_doc_id: str
    neighbour: MarkedText  # chunk and continuation
    shared_tokens: int  # length of the marked part in both
    bits_on: float  # loss of the chunk by the retrieving model
    bits_without: float  # loss of the chunk by the model trained without retrieval


@dataclass(frozen=True)
class ValidationPage:
    """Everything that the page shows."""

    title: str
    verdict: str
    setting: Sequence[tuple[str, str]]  # name and value
    bits_per_byte: Mapping[str, BitsPerByte]  # by condition
    gain: Mapping[str, BitsPerByte]  # by condition other than on
    losses: Mapping[str, Sequence[float]]  # model -> nats per token of each step
    leakage: Mapping[str, Float64Array]  # condition -> (m + 1,) bits per byte with r(C) <= 0, 1/m, ... 1; nan for none
    chunks_by_ratio: Sequence[int]  # (m + 1,) chunks with an r(C) from i / m up to (i + 1) / m; the last class is 1
    fraction_at_eighth: float  # of these chunks, with an r(C) of 12.5% or more
    num_chunks_not_looked_up: int  # that have no r(C), because they have no vector
    helped: Sequence[ChunkExample]
    hindered: Sequence[ChunkExample]


def render_page(page: ValidationPage) -> str:
    """The HTML.

    Raises:
        MissingDependency: without matplotlib.
    """
    m = len(page.chunks_by_ratio) - 1
    return render_template(
        "retro/page.html.jinja",
        title=page.title,
        page=page,
        conditions=CONDITIONS,
        training_chart=_training_chart(page),
        leakage_chart=_leakage_chart(page, np.arange(m + 1) / m),
        num_chunks_looked_up=sum(page.chunks_by_ratio),
    )


def _training_chart(page: ValidationPage) -> LineChart:
    curves = [Curve(name, *_smoothed(losses)) for name, losses in page.losses.items()]
    return LineChart("training", curves, "step", "nats per token")


def _leakage_chart(page: ValidationPage, alphas: Float64Array) -> LineChart:
    curves = [Curve(name, alphas, values) for name, values in page.leakage.items()]
    return LineChart("leakage", curves, "r(C) at most", "bits per byte", is_x_fraction=True)


def _smoothed(losses: Sequence[float]) -> tuple[Float64Array, Float64Array]:
    """Last step and mean loss of consecutive steps, in at most `_LOSS_POINTS` groups."""
    if not len(losses):
        return np.zeros(0), np.zeros(0)
    groups = np.array_split(np.asarray(losses, dtype=np.float64), min(_LOSS_POINTS, len(losses)))
    last_steps = np.cumsum([len(group) for group in groups]).astype(np.float64)
    return last_steps, np.array([group.mean() for group in groups])
