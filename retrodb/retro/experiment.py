"""The result of a validation, and everything that a page about it needs.

Shapes: Q held-out chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.format.arrays import Int64Array
from retrodb.retro.data import RetroData
from retrodb.retro.evaluate import Evaluation, EvaluationReport
from retrodb.retro.leakage import SharedRuns
from retrodb.retro.training import TrainedModel
from retrodb.view.neighbour_table import NeighbourTable


@dataclass(frozen=True)
class LeakagePoint:
    """Bits per byte of the chunks that share at most a fraction of their tokens with a nearest neighbour.

    Chunks whose neighbours were not looked up are in none of the points.
    """

    alpha: float  # the chunks with r(C) <= alpha
    num_chunks: int
    bits_per_byte_on: float | None  # with retrieval; None when there are no such chunks
    bits_per_byte_without: float | None  # of the model trained without retrieval


@dataclass(frozen=True)
class ValidateResult:
    """The experiment and its result."""

    snapshot: int
    space: str
    train_table: str
    heldout_table: str
    is_screened: bool  # whether a leak scan compared the whole database with the held-out documents
    size: str
    num_steps: int  # of each model
    num_train_chunks: int
    report: EvaluationReport
    leakage: tuple[LeakagePoint, ...]  # for alpha of 0, 1/8, ... 1
    num_chunks_not_looked_up: int = 0  # held-out chunks without a vector, which no point counts
    page: str | None = None  # path of the HTML report, when one was asked for


@dataclass(frozen=True)
class Experiment:
    """Everything that a page about a validation needs."""

    result: ValidateResult
    table: NeighbourTable  # of the held-out documents
    rows: Int64Array  # (Q,) evaluated rows of the query set
    heldout: RetroData
    evaluation: Evaluation
    retrieving: TrainedModel  # trained with neighbours
    plain: TrainedModel  # trained without
    runs: SharedRuns  # of the held-out chunks with their ten nearest
