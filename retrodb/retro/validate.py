"""Validate: the bounded experiment that tells whether a database helps a language model.

Two models of one size and seed see the same tokens in the same order, one with the neighbours of the table and one without.
Held-out documents then tell: the retrieving model against the other (the honest baseline), against itself with shuffled and
random neighbours, and with retrieval switched off.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from retrodb.config import ValidateParams
from retrodb.engine.progress import Progress
from retrodb.errors import MissingStep
from retrodb.retro.collect import collect
from retrodb.retro.config import sized
from retrodb.retro.data import RetroData
from retrodb.retro.evaluate import Report, evaluate
from retrodb.retro.model import RetroModel
from retrodb.retro.train import TrainedModel, by_clock, by_steps, train
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

_STEPS_OF_PROGRESS = 1000  # a bar in thousandths: with a clock the number of steps is not known beforehand


@dataclass(frozen=True)
class ValidateResult:
    """The experiment and what came out."""

    snapshot: int
    space: str
    train_table: str
    heldout_table: str
    size: str
    steps: int  # of each model
    train_chunks: int
    report: Report


def run_validate(
    view: View, progress: Progress, params: ValidateParams, *, table: str | None = None, heldout: str | None = None
) -> ValidateResult:
    """Train both models and evaluate them.

    Args:
        table: the neighbour table of the training documents; None takes that of the database's own chunks.
        heldout: the neighbour table of the held-out documents; None takes the first of a foreign query set.

    Raises:
        MissingStep: when one of the tables is missing.
        MismatchError: when they are of different spaces.
    """
    trained_on = NeighbourTable(view, table or SELF)
    held_out = NeighbourTable(view, heldout or _foreign_table(view))
    data = collect(trained_on, max_chunks=params.max_train_chunks, seed=params.seed)
    unseen = collect(held_out, max_chunks=params.max_heldout_chunks, seed=params.seed)
    k = min(trained_on.k, held_out.k)
    config = sized(
        params.size,
        view.settings.vocab_size,
        chunk_tokens=view.settings.chunk_tokens,
        num_chunks=8,
        k=k,
        seed=params.seed,
    )
    steps = by_steps(params.steps) if params.minutes is None else by_clock(60 * params.minutes, time.monotonic)
    retrieving = _train(RetroModel(config), data, steps, params, progress, "train with neighbours")
    plain = _train(RetroModel(config), data.without(), retrieving.progress, params, progress, "train without")
    evaluation = evaluate(retrieving, plain, unseen, seed=params.seed, batch_chunks=params.batch_chunks)
    return ValidateResult(
        snapshot=view.snapshot.number,
        space=trained_on.entry["space"],
        train_table=trained_on.name,
        heldout_table=held_out.name,
        size=params.size,
        steps=len(retrieving.progress),
        train_chunks=len(data.query_documents),
        report=evaluation.report,
    )


def _train(
    model: RetroModel, data: RetroData, steps: Iterable[float], params: ValidateParams, progress: Progress, name: str
) -> TrainedModel:
    done = 0
    with progress.stage(name, _STEPS_OF_PROGRESS) as bar:

        def on_step(step: int, loss: float, share: float) -> None:
            nonlocal done
            del step, loss
            reached = int(share * _STEPS_OF_PROGRESS)
            bar.advance(reached - done)
            done = reached

        return train(model, data, steps, batch_chunks=params.batch_chunks, on_step=on_step)


def _foreign_table(view: View) -> str:
    tables = [name for name in view.snapshot.names("table") if view.snapshot.entry("table", name)["queries"] != SELF]
    if not tables:
        raise MissingStep(
            "no neighbour table of held-out documents",
            remedy="Hold some out with 'retrodb ingest --holdout 1%', or name some with 'retrodb queries add'; "
            "then run 'retrodb embed' and 'retrodb neighbours --queries NAME'.",
        )
    return tables[0]
