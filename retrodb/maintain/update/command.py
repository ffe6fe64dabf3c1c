"""Update: run every stage, in order, over new and changed input.

Cheap stages that delete documents come before expensive ones. The steps are commands of the database
(`facade/update_commands.py`), so nothing is done twice and an interrupted update can be continued. Everything in the
database is kept up to date. What the recipe names in addition is created.

A source that fails does not stop the others. A later stage that fails ends the update, because the stages after it
depend on it: a document that a rule would have deleted must not reach the index.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeAlias

from retrodb.config import NeighboursParams
from retrodb.engine.worker_tally import WorkerTally, by_machine
from retrodb.errors import EXIT_OK, EXIT_REJECTS, RetroDBError, UsageError
from retrodb.export.card import ExportCard
from retrodb.export.place import export_place, is_there, read_card
from retrodb.export.refresh import ExportInfo, RefreshResult
from retrodb.format.entries import IndexEntry, QueriesEntry, SpaceEntry, TableEntry
from retrodb.format.json_codec import to_json
from retrodb.maintain.compact.proposal import propose_compaction
from retrodb.maintain.update.metrics import UpdateMetrics, write_metrics
from retrodb.maintain.update.recipe import Recipe, TableRecipe
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.ingest.plan import IngestResult
from retrodb.store.open_storage import open_storage
from retrodb.store.snapshots import since, snapshot_numbers
from retrodb.store.storage import translate_os_error
from retrodb.view.shard_counts import num_pending_chunks
from retrodb.view.view import View

DONE, NOTHING_NEW, FAILED, LEFT_OUT = "done", "nothing new", "failed", "left out"


@dataclass(frozen=True)
class UpdateStep:
    """One step of an update: a command that ended, or was not started."""

    stage: str
    name: str  # name of the source, test set, space, table, ...
    outcome: str  # "done", "nothing new", "failed" or "left out"
    elapsed_s: float
    counts: dict[str, int] = field(default_factory=dict)  # sums over its commits
    error: str | None = None
    exit_code: int = EXIT_OK  # of the error; EXIT_REJECTS for an ingest that rejected records
    notes: tuple[str, ...] = ()  # of an ingest: about its files, options and rejected records; why an export is left
    workers: dict[str, WorkerTally] = field(
        default_factory=dict
    )  # that ran its tasks, by name; none with `--engine local`


@dataclass(frozen=True)
class UpdateResult:
    """What an update did."""

    database: str
    snapshot: int  # the newest one after the update
    outcome: str  # "done", "nothing new" or "failed"
    elapsed_s: float
    steps: tuple[UpdateStep, ...]
    exit_code: int = EXIT_OK  # of the first step that failed; without one, EXIT_REJECTS if records were rejected
    notes: tuple[str, ...] = ()  # what would make the next commands faster


Report: TypeAlias = Callable[[UpdateStep], None]
Step: TypeAlias = tuple[str, Callable[[], object]]
"""A name and the command."""
Stages: TypeAlias = Mapping[str, Callable[[], Iterator[Step]]]
"""The name of each stage, and the function that plans its steps."""


def select_sources(recipe: Recipe, sources: Sequence[str], *, mirror: bool) -> Recipe:
    """The recipe with only some of its sources, which are mirrored if `mirror` is set.

    Raises:
        UsageError: for a source that the recipe does not have.
    """
    for name in sources:
        if name not in recipe.sources:
            raise UsageError(f"the recipe has no source '{name}'", remedy=f"It has: {', '.join(recipe.sources)}.")
    chosen = {name: table for name, table in recipe.sources.items() if not sources or name in sources}
    return replace(recipe, sources={n: replace(t, mirror=t.mirror or mirror) for n, t in chosen.items()})


def run_update(context: Context, recipe: Recipe, stages: Stages, report: Report = lambda step: None) -> UpdateResult:
    """Bring a database up to date with its recipe. An error of a step is part of the result, and hooks are told of it.

    Args:
        stages: the steps of every stage of the recipe, in order.
        report: called with every step when it ends.
    """
    started, before = time.monotonic(), context.view().snapshot.number
    steps: list[UpdateStep] = []

    def attempt(stage: str, name: str, command: Callable[[], object]) -> None:
        steps.append(_attempt(context, stage, name, command))
        report(steps[-1])

    for stage, plan_steps in stages.items():
        depends_on_failure = any(step.outcome == FAILED and step.stage != "ingest" for step in steps)
        for name, command in _planned(plan_steps):
            if depends_on_failure:
                steps.append(UpdateStep(stage, name, LEFT_OUT, 0.0))
                report(steps[-1])
            else:
                attempt(stage, name, command)
    has_failed = any(step.outcome == FAILED for step in steps)
    if recipe.metrics.file:
        attempt("metrics", recipe.metrics.file, partial(_write_metrics, context, recipe, steps, started))
    hook = recipe.hooks.on_failure if has_failed else recipe.hooks.on_success
    if hook:
        outcome = FAILED if has_failed else DONE
        attempt("hook", hook, partial(_run_hook, context, recipe, hook, outcome, tuple(steps)))
    failed = [step for step in steps if step.outcome == FAILED]
    view = context.view()
    after, proposal = view.snapshot.number, propose_compaction(view)
    return UpdateResult(
        database=context.storage.url,
        snapshot=after,
        outcome=FAILED if failed else NOTHING_NEW if after == before else DONE,
        elapsed_s=time.monotonic() - started,
        steps=tuple(steps),
        exit_code=failed[0].exit_code if failed else max((step.exit_code for step in steps), default=EXIT_OK),
        notes=(proposal,) if proposal else (),
    )


def _planned(plan_steps: Callable[[], Iterator[Step]]) -> list[Step]:
    """The steps of a stage, planned when the stages before it are done. An error of the plan becomes a step."""
    try:
        return list(plan_steps())
    except RetroDBError as error:
        return [("", partial(_fail, error))]


def _fail(error: RetroDBError) -> None:
    raise error


def _attempt(context: Context, stage: str, name: str, command: Callable[[], object]) -> UpdateStep:
    started = time.monotonic()
    context.engine.work.clear()
    try:
        before = context.view().snapshot
        result = command()
        head = context.view().snapshot
        counts: Counter[str] = Counter()
        for snapshot in since(context.storage, before.number, head):
            counts.update(snapshot.counts)
        if isinstance(result, RefreshResult):
            counts.update(
                changed_files=len(result.changed),
                unchanged_files=result.num_unchanged_files,
                rows_without_position=result.num_rows_without_position,
            )
    except (RetroDBError, OSError) as error:
        refusal = error if isinstance(error, RetroDBError) else translate_os_error(error, str(error.filename or name))
        elapsed_s = time.monotonic() - started
        work = dict(context.engine.work)
        return UpdateStep(stage, name, FAILED, elapsed_s, error=str(refusal), exit_code=refusal.exit_code, workers=work)
    outcome = DONE if head.number > before.number or stage in _WITHOUT_COMMIT else NOTHING_NEW
    notes, exit_code = list[str](), EXIT_OK
    if isinstance(result, IngestResult):
        notes = result.all_notes(context.storage.url)
        counts["rejected"] = result.num_rejected  # without a commit, no snapshot counts them
        exit_code = EXIT_REJECTS if result.num_rejected else EXIT_OK
    if isinstance(result, LeftExport):
        notes = [result.note]
    elapsed_s, shown = time.monotonic() - started, {key: count for key, count in counts.items() if count}
    work = dict(context.engine.work)
    return UpdateStep(stage, name, outcome, elapsed_s, shown, exit_code=exit_code, notes=tuple(notes), workers=work)


@dataclass(frozen=True)
class LeftExport:
    """An export that is not refreshed."""

    note: str


_WITHOUT_COMMIT = ("metrics", "hook")
"""Stages that change nothing in the database."""


def tables_to_compute(view: View, recipe: Recipe) -> Iterator[tuple[str, TableRecipe]]:
    """The neighbour tables of the recipe that are not there yet, or were computed with other parameters."""
    for name, table in recipe.neighbours.items():
        space = table.space or view.snapshot.default_space
        if view.snapshot.entry(IndexEntry, space) is None or (
            table.queries == HELD_OUT_SET and view.snapshot.entry(QueriesEntry, HELD_OUT_SET) is None
        ):
            continue  # nothing is embedded, or nothing is held out
        entry = view.snapshot.entry(TableEntry, name)
        params = NeighboursParams(**{each.name: getattr(table, each.name) for each in fields(NeighboursParams)})
        if entry is None or (entry.queries, entry.space, entry.params) != (table.queries, space, params):
            yield name, table


def exports_to_refresh(view: View, recipe: Recipe, exports: Sequence[ExportInfo]) -> Iterator[str]:
    """The exports, registered or in the recipe, that exist and are older than the last change of the database."""
    known = {info.path: info.snapshot for info in exports if is_there(info.path)}
    for export in recipe.exports:
        if is_there(export.out):
            known.setdefault(export.out, -1)
    for out, shown in known.items():
        if shown < 0 or any(snapshot.command != "export" for snapshot in since(view.storage, shown, view.snapshot)):
            yield out


def card_of_another(view: View, out: str) -> ExportCard | None:
    """The card of an export that was last written from another database that is still there, as that of a copy is.

    A database that was moved, or replaced by its copy, keeps its exports.
    """
    card = read_card(export_place(out))
    if "://" not in card.database and os.path.realpath(card.database) == os.path.realpath(view.storage.url):
        return None
    try:
        is_another = card.database != view.storage.url and bool(snapshot_numbers(open_storage(card.database)))
    except RetroDBError:  # nothing can be reached there
        return None
    return card if is_another else None


def leave_export(database: str, out: str, card: ExportCard) -> LeftExport:
    """Say why an export of another database is not refreshed."""
    take_over = shlex.join(["retrodb", "export", database, out, "--to", card.format])
    return LeftExport(f"{out}: not refreshed, because it belongs to {card.database}. To take it over: {take_over}")


def spaces_of(view: View, recipe: Recipe) -> list[str]:
    """The spaces that an update fills: the default space, those of the recipe, and those in the database."""
    return list(dict.fromkeys([view.snapshot.default_space, *recipe.spaces, *view.snapshot.names(SpaceEntry)]))


def pending_vectors(view: View, space: str) -> int:
    """How many live, screened keys, and rows of query sets, have no vector in a space."""
    count = num_pending_chunks(view, space)
    for query_set in view.snapshot.names(QueriesEntry):
        chunks, covered = view.query_set(query_set), view.query_vectors(query_set, space)
        for record in chunks.ranges:
            count += int((chunks.key_mask(*record.span) & ~covered.covered_mask(*record.span)).sum())
    return count


def _write_metrics(context: Context, recipe: Recipe, steps: Sequence[UpdateStep], started: float) -> None:
    metrics = UpdateMetrics(
        finished_at=time.time(),
        elapsed_s=time.monotonic() - started,
        is_success=all(step.outcome != FAILED for step in steps),
        rejected={step.name: step.counts.get("rejected", 0) for step in steps if step.stage == "ingest"},
        work=_work_of_machines(steps),
    )
    write_metrics(Path(recipe.metrics.file or ""), context.view(), metrics)


def _work_of_machines(steps: Sequence[UpdateStep]) -> dict[tuple[str, str], WorkerTally]:
    work: dict[tuple[str, str], WorkerTally] = {}
    for step in steps:
        for machine, tally in by_machine(step.workers).items():
            work[step.stage, machine] = work.get((step.stage, machine), WorkerTally()) + tally
    return work


def _run_hook(context: Context, recipe: Recipe, hook: str, outcome: str, steps: Sequence[UpdateStep]) -> None:
    """Run a hook without a shell. It reads the steps from stdin, each as a line of JSON.

    Its output goes to stderr, because stdout has the output of the command itself.

    Raises:
        RetroDBError: the hook cannot be started, or its exit code is not 0.
    """
    words = shlex.split(hook)
    variables = {
        "RETRODB_DATABASE": context.storage.url,
        "RETRODB_RESULT": "failure" if outcome == FAILED else "success",
        "RETRODB_METRICS": recipe.metrics.file or "",
    }
    try:
        with TemporaryFile() as lines:  # a pipe would have to be read: by the hook, or by what it leaves running
            lines.writelines(to_json(step) + b"\n" for step in steps)
            lines.seek(0)
            done = subprocess.run(words, env={**os.environ, **variables}, stdin=lines, stdout=2, check=False)
    except OSError as error:
        what = f"cannot be started: {error.strerror}"
        raise RetroDBError(what, where=words[0], remedy="Check the recipe.") from error
    if done.returncode:
        raise RetroDBError(
            f"the hook ended with exit code {done.returncode}", where=hook, remedy="See its output above."
        )
