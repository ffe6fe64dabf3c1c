"""Validate: a bounded experiment that measures whether a database helps a language model.

Two models of one size and seed are trained on the same tokens in the same order, one with the neighbours of the table and one
without. On held-out documents the retrieving model is compared with the other (the fair baseline), and with itself: with shuffled
neighbours, with random ones, and with retrieval turned off.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from retrodb.bench.charts import require_matplotlib
from retrodb.config import ValidateParams
from retrodb.encode.device import choose_compute
from retrodb.engine.progress import Progress
from retrodb.errors import MismatchError, MissingStep, UsageError
from retrodb.format.entries import TableEntry, TestsetEntry
from retrodb.retro.collect import collect_data, data_with_neighbours, sample_rows
from retrodb.retro.data import RetroData
from retrodb.retro.evaluate import Evaluation, evaluate_conditions
from retrodb.retro.examples import validation_page
from retrodb.retro.experiment import Experiment, LeakagePoint, ValidateResult
from retrodb.retro.leakage import NUM_NEAREST, SharedRuns, chunks_up_to_ratio, leakage_curve, longest_shared_runs
from retrodb.retro.model import RetroModel
from retrodb.retro.model_config import config_of_size
from retrodb.retro.page import render_page
from retrodb.retro.run_leakage import data_with_nearest
from retrodb.retro.run_training import training_bar
from retrodb.retro.training import TrainedModel, schedule_by_clock, schedule_by_steps, train_model
from retrodb.stages.search.command import Searcher
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

# Of the training time, for the retrieving model: a step of it takes 1.5 times as long as one without retrieval, or longer.
RETRIEVING_FRACTION = 0.6


def run_validate(
    view: View,
    progress: Progress,
    params: ValidateParams,
    *,
    table: str | None = None,
    heldout: str | None = None,
    report: Path | None = None,
    device: str = "auto",
) -> ValidateResult:
    """Train both models and evaluate them.

    Args:
        table: the neighbour table of the training documents; None takes that of the database's own chunks.
        heldout: the neighbour table of the held-out documents; None takes the first of another query set.
        report: where to write the experiment as an HTML page.

    Raises:
        MissingStep: when one of the tables is missing.
        MismatchError: when they are of different spaces.
        UsageError: for a held-out table of the database's own chunks, or an invalid time.
        MissingDependency: for a page without matplotlib.
    """
    if report is not None:
        require_matplotlib()  # now, and not after minutes of training
    experiment = _experiment(view, progress, params, table, heldout, choose_compute(device).device)
    if report is None:
        return experiment.result
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(render_page(validation_page(experiment, view)), encoding="utf-8")
    return replace(experiment.result, page=str(report))


def _experiment(
    view: View, progress: Progress, params: ValidateParams, table: str | None, heldout: str | None, device: str
) -> Experiment:
    if params.minutes <= 0 or (params.steps is not None and params.steps < 1):
        raise UsageError("no time to train", remedy="Give --minutes above 0, or --steps of 1 or more.")
    trained_on = NeighbourTable(view, table or SELF)
    held_out = NeighbourTable(view, heldout or _heldout_table(view))
    _check_tables(trained_on, held_out)
    data = collect_data(trained_on, max_chunks=params.max_train_chunks, seed=params.seed)
    space = trained_on.entry.space
    rows = sample_rows(view.query_set(held_out.query_set), params.max_heldout_chunks, params.seed)
    unseen = data_with_neighbours(view, held_out.query_set, rows, held_out.read(rows)[0], space=space)
    config = replace(
        config_of_size(params.size, view.settings.vocab_size),
        chunk_tokens=view.settings.chunk_tokens,
        k=min(trained_on.k, held_out.k),
        seed=params.seed,
    )
    seconds = 60 * params.minutes * RETRIEVING_FRACTION
    schedule = schedule_by_clock(seconds, time.monotonic) if params.steps is None else schedule_by_steps(params.steps)

    def trained(name: str, on: RetroData, steps: Iterable[float]) -> TrainedModel:
        with training_bar(progress, name) as on_step:
            return train_model(
                RetroModel(config), on, steps, batch_chunks=params.batch_chunks, device=device, on_step=on_step
            )

    retrieving = trained("train with neighbours", data, schedule)
    plain = trained("train without", data.without(), retrieving.progress)
    evaluation = evaluate_conditions(
        retrieving, plain, unseen, seed=params.seed, batch_chunks=params.batch_chunks, device=device
    )
    searcher = Searcher.open(view, space=space, is_limited=False)
    nearest, is_looked_up = data_with_nearest(searcher, held_out.query_set, rows, NUM_NEAREST)
    runs = longest_shared_runs(nearest, is_looked_up=is_looked_up)
    result = ValidateResult(
        snapshot=view.snapshot.number,
        space=space,
        train_table=trained_on.name,
        heldout_table=held_out.name,
        is_screened=is_screened(view, held_out.query_set),
        size=params.size,
        num_steps=len(retrieving.progress),
        num_train_chunks=len(data.query_documents),
        report=evaluation.report,
        leakage=tuple(_leakage_points(runs, evaluation, unseen)),
        num_chunks_not_looked_up=len(runs.length) - runs.num_measured,
    )
    return Experiment(result, held_out, rows, unseen, evaluation, retrieving, plain, runs)


def is_screened(view: View, query_set: str) -> bool:
    """Whether the documents of a query set are a test set that all of the database was compared with."""
    return query_set in view.snapshot.names(TestsetEntry) and not view.unscreened_shards(query_set)


def _leakage_points(runs: SharedRuns, evaluation: Evaluation, data: RetroData) -> Iterable[LeakagePoint]:
    curves = {name: leakage_curve(runs, evaluation.bits[name], data.query_bytes) for name in ("on", "without")}
    chunks = chunks_up_to_ratio(runs)
    for eighth in range(9):
        run = runs.chunk_tokens * eighth // 8
        on, without = (None if np.isnan(curves[name][run]) else float(curves[name][run]) for name in ("on", "without"))
        yield LeakagePoint(eighth / 8, int(chunks[run]), bits_per_byte_on=on, bits_per_byte_without=without)


def _check_tables(trained_on: NeighbourTable, held_out: NeighbourTable) -> None:
    if held_out.query_set == SELF:
        what = f"table '{held_out.name}' is of the database's own chunks, which the models are trained on"
        raise UsageError(what, remedy="Name the table of another query set with --heldout.")
    spaces = trained_on.entry.space, held_out.entry.space
    if spaces[0] != spaces[1]:
        what = f"table '{trained_on.name}' is of space '{spaces[0]}', '{held_out.name}' of '{spaces[1]}'"
        raise MismatchError(what, remedy="Name two tables of one space with --table and --heldout.")


def _heldout_table(view: View) -> str:
    tables = [
        name for name in view.snapshot.names(TableEntry) if view.snapshot.existing(TableEntry, name).queries != SELF
    ]
    if not tables:
        raise MissingStep(
            "no neighbour table of held-out documents",
            remedy="Hold some out with 'retrodb ingest --holdout 1%', or name some with 'retrodb queries add'. "
            "Then run 'retrodb embed' and 'retrodb neighbours --queries NAME'.",
        )
    return tables[0]
