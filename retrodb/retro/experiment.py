"""What a validation is: its result, and all that a page about it can be made of.

Shapes: Q held-out chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.format.arrays import Int64Array
from retrodb.retro.data import RetroData
from retrodb.retro.evaluate import Evaluation, Report
from retrodb.retro.leakage import SharedRuns
from retrodb.retro.train import TrainedModel
from retrodb.view.neighbour_table import NeighbourTable


@dataclass(frozen=True)
class LeakagePoint:
    """Bits per byte of the chunks that share little with their nearest neighbours."""

    alpha: float  # the chunks with r(C) up to this share
    chunks: int
    on: float | None  # bits per byte with retrieval; None without such chunks
    without: float | None  # of the model trained without


@dataclass(frozen=True)
class ValidateResult:
    """The experiment and what came out."""

    snapshot: int
    space: str
    train_table: str
    heldout_table: str
    is_screened: bool  # whether the whole database was held against the held-out documents by a leak scan
    size: str
    steps: int  # of each model
    train_chunks: int
    report: Report
    leakage: tuple[LeakagePoint, ...]  # for alpha of 0, 1/8, ... 1
    page: str | None = None  # the HTML report, when one was asked for


@dataclass(frozen=True)
class Experiment:
    """All that a page can be made of."""

    result: ValidateResult
    table: NeighbourTable  # of the held-out documents
    rows: Int64Array  # (Q,) of the query set, that were evaluated
    heldout: RetroData
    evaluation: Evaluation
    retrieving: TrainedModel
    plain: TrainedModel
    runs: SharedRuns  # of the held-out chunks with their ten nearest
