"""Update: every stage in its order, over what is new.

What is cheap and removes comes before what is dear. The steps are the commands of the database itself, so what they
promise holds here: nothing is done twice, and an update that was interrupted goes on where it was. What the database has
is kept up to date; what the recipe names besides is made.

An input that fails costs only itself. A later stage that fails ends the update, because what follows rests on it: no
document that a rule would have taken out may reach the index.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from retrodb.config import DedupParams, IngestParams, NeighboursParams, to_mapping
from retrodb.errors import EXIT_OK, RetroDBError, UsageError
from retrodb.export.refresh import ExportInfo, RefreshResult
from retrodb.format.entries import DuplicatesEntry, IndexEntry, QueriesEntry, SpaceEntry, TableEntry, TestsetEntry
from retrodb.maintain.update.metrics import UpdateMetrics, write_metrics
from retrodb.maintain.update.recipe import Recipe, options_of
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.store.snapshots import since
from retrodb.store.storage import translate_os_error
from retrodb.view.view import SELF, View

DONE, NOTHING_NEW, FAILED, LEFT_OUT = "done", "nothing new", "failed", "left out"


class Commands(Protocol):
    """The commands of a database that an update calls."""

    @property
    def path(self) -> str: ...

    def view(self, as_of: int | None = None) -> View: ...

    def ingest(self, inputs: Sequence[str | Path], **options: Any) -> Any: ...

    def tag(self, name: str, **options: Any) -> Any: ...

    def filter(self, **options: Any) -> Any: ...

    def dedup(self, against: Sequence[str | Path] = (), **options: Any) -> Any: ...

    def near_duplicates(self, **options: Any) -> Any: ...

    def embed(self, **options: Any) -> Any: ...

    def index(self, **options: Any) -> Any: ...

    def neighbours(self, **options: Any) -> Any: ...

    def repair_neighbours(self, **options: Any) -> Any: ...

    def export(self, out: str | Path, **options: Any) -> Any: ...

    def exports(self) -> list[ExportInfo]: ...

    def refresh_export(self, out: str | Path, **options: Any) -> Any: ...


@dataclass(frozen=True)
class UpdateStep:
    """One command of an update that ended, or was not begun."""

    stage: str
    name: str  # of the source, test set, space, table, ...
    outcome: str  # "done", "nothing new", "failed" or "left out"
    elapsed_s: float
    counts: dict[str, int] = field(default_factory=dict)  # of its commits
    error: str | None = None
    exit_code: int = EXIT_OK


@dataclass(frozen=True)
class UpdateResult:
    """What an update did."""

    database: str
    snapshot: int  # the newest one now
    outcome: str  # "done", "nothing new" or "failed"
    elapsed_s: float
    steps: tuple[UpdateStep, ...]
    exit_code: int = EXIT_OK  # of the first failure


Report = Callable[[UpdateStep], None]
Step = tuple[str, Callable[[], Any]]
"""A name and the command."""


def narrowed(recipe: Recipe, sources: Sequence[str], *, mirror: bool) -> Recipe:
    """The recipe with some of its sources only, and all of these mirrored if wanted.

    Raises:
        UsageError: for a source that the recipe does not have.
    """
    for name in sources:
        if name not in recipe.sources:
            raise UsageError(f"the recipe has no source '{name}'", remedy=f"It has: {', '.join(recipe.sources)}.")
    chosen = {name: table for name, table in recipe.sources.items() if not sources or name in sources}
    return replace(recipe, sources={n: replace(t, mirror=t.mirror or mirror) for n, t in chosen.items()})


def run_update(db: Commands, recipe: Recipe, report: Report = lambda step: None) -> UpdateResult:
    """Bring a database up to date with its recipe. What fails is part of the result, and told to the hooks.

    Args:
        report: called with every step as it ends.
    """
    started, before = time.monotonic(), db.view().snapshot.number
    steps: list[UpdateStep] = []

    def attempt(stage: str, name: str, command: Callable[[], Any]) -> None:
        steps.append(_attempt(db, stage, name, command))
        report(steps[-1])

    for stage, steps_of in _STAGES.items():
        rests_on_failure = any(step.outcome == FAILED and step.stage != "ingest" for step in steps)
        for name, command in _planned(db, recipe, steps_of):
            if rests_on_failure:
                steps.append(UpdateStep(stage, name, LEFT_OUT, 0.0))
                report(steps[-1])
            else:
                attempt(stage, name, command)
    has_failed = any(step.outcome == FAILED for step in steps)
    if recipe.metrics.file:
        attempt("metrics", recipe.metrics.file, partial(_write_metrics, db, recipe, steps, started))
    hook = recipe.hooks.on_failure if has_failed else recipe.hooks.on_success
    if hook:
        attempt("hook", hook, partial(_run_hook, db, recipe, hook, FAILED if has_failed else DONE))
    failed = [step for step in steps if step.outcome == FAILED]
    after = db.view().snapshot.number
    return UpdateResult(
        database=db.path,
        snapshot=after,
        outcome=FAILED if failed else NOTHING_NEW if after == before else DONE,
        elapsed_s=time.monotonic() - started,
        steps=tuple(steps),
        exit_code=failed[0].exit_code if failed else EXIT_OK,
    )


def _planned(db: Commands, recipe: Recipe, steps_of: Callable[[Commands, Recipe], Iterator[Step]]) -> list[Step]:
    """The steps of a stage, planned on what the stages before it left."""
    try:
        return list(steps_of(db, recipe))
    except RetroDBError as error:
        return [("", partial(_fail, error))]


def _fail(error: RetroDBError) -> None:
    raise error


def _attempt(db: Commands, stage: str, name: str, command: Callable[[], Any]) -> UpdateStep:
    started = time.monotonic()
    try:
        before = db.view().snapshot
        found = command()
        head = db.view().snapshot
        counts: Counter[str] = Counter()
        for snapshot in since(db.view().storage, before.number, head):
            counts.update(snapshot.counts)
        if isinstance(found, RefreshResult):
            counts.update(
                changed_files=len(found.changed), kept_files=found.kept, rows_without_place=found.without_place
            )
    except (RetroDBError, OSError) as error:
        known = error if isinstance(error, RetroDBError) else translate_os_error(error, str(error.filename or name))
        return UpdateStep(stage, name, FAILED, time.monotonic() - started, error=str(known), exit_code=known.exit_code)
    outcome = DONE if head.number > before.number or stage in _BESIDE else NOTHING_NEW
    return UpdateStep(stage, name, outcome, time.monotonic() - started, {k: n for k, n in counts.items() if n})


_BESIDE = ("metrics", "hook")
"""Stages that leave no trace in the database."""


def _ingest(db: Commands, recipe: Recipe) -> Iterator[Step]:
    for name, table in recipe.sources.items():
        options = options_of(table, IngestParams)
        yield name, partial(db.ingest, table.inputs, files_from=table.files_from, **options)


def _tag(db: Commands, recipe: Recipe) -> Iterator[Step]:
    for name, table in recipe.taggers.items():
        yield name, partial(db.tag, name, device=recipe.embed.device, **to_mapping(table))


def _filter(db: Commands, recipe: Recipe) -> Iterator[Step]:
    for rule in recipe.filters:
        yield rule.where, partial(db.filter, **to_mapping(rule))


def _dedup(db: Commands, recipe: Recipe) -> Iterator[Step]:
    for name, table in recipe.testsets.items():
        yield name, partial(db.dedup, table.files, name=name, **options_of(table, DedupParams))
    for name in db.view().snapshot.names(TestsetEntry):
        if name not in recipe.testsets:
            yield name, partial(db.dedup, name=name)


def _near_duplicates(db: Commands, recipe: Recipe) -> Iterator[Step]:
    former = db.view().snapshot.entry(DuplicatesEntry, "near")
    params = recipe.near_duplicates or (former.params if former else None)
    if params:
        yield "", partial(db.near_duplicates, **to_mapping(params))


def _embed(db: Commands, recipe: Recipe) -> Iterator[Step]:
    for name in spaces_of(db.view(), recipe):
        if pending_vectors(db.view(), name):
            params = recipe.spaces.get(name)
            options = to_mapping(params) if params else {}
            yield name, partial(db.embed, space=name, **to_mapping(recipe.embed), **options)


def _index(db: Commands, recipe: Recipe) -> Iterator[Step]:
    for name in db.view().snapshot.names(SpaceEntry):
        if db.view().manifest.files("vectors", name):
            yield name, partial(db.index, space=name, **to_mapping(recipe.index))


def _neighbours(db: Commands, recipe: Recipe) -> Iterator[Step]:
    view = db.view()
    for name, table in recipe.neighbours.items():
        space = table.space or view.snapshot.default_space
        if view.snapshot.entry(IndexEntry, space) is None or (
            table.queries == HELD_OUT_SET and view.snapshot.entry(QueriesEntry, HELD_OUT_SET) is None
        ):
            continue  # nothing was embedded, or nothing held out
        former = view.snapshot.entry(TableEntry, name)
        params = options_of(table, NeighboursParams)
        is_same = former is not None and (former.queries, former.space) == (table.queries, space)
        if former is None or not is_same or replace(former.params, **params) != former.params:
            yield name, partial(db.neighbours, table=name, queries=table.queries, space=table.space, **params)
    for name in view.snapshot.names(TableEntry):
        yield name, partial(db.repair_neighbours, table=name)


def _export(db: Commands, recipe: Recipe) -> Iterator[Step]:
    """Exports that are known are refreshed where they still are; those of the recipe that are not there are made."""
    view, known = db.view(), {info.path: info.snapshot for info in db.exports() if Path(info.path).exists()}
    for export in recipe.exports:
        if not Path(export.out).exists():
            yield export.out, partial(db.export, export.out, to=export.to, table=export.table)
        else:
            known.setdefault(export.out, -1)
    for out, shown in known.items():
        if shown < 0 or any(each.command != "export" for each in since(view.storage, shown, view.snapshot)):
            yield out, partial(db.refresh_export, out)


_STAGES: dict[str, Callable[[Commands, Recipe], Iterator[Step]]] = {
    "ingest": _ingest,
    "tag": _tag,
    "filter": _filter,
    "dedup": _dedup,
    "near-duplicates": _near_duplicates,
    "embed": _embed,
    "index": _index,
    "neighbours": _neighbours,
    "export": _export,
}


def spaces_of(view: View, recipe: Recipe) -> list[str]:
    """The spaces that an update fills: the default one, those of the recipe, and those that are there."""
    return list(dict.fromkeys([view.snapshot.default_space, *recipe.spaces, *view.snapshot.names(SpaceEntry)]))


def pending_vectors(view: View, space: str) -> int:
    """How many live, screened keys, and rows of query sets, have no vector in a space."""
    count = 0
    for query_set in (SELF, *view.snapshot.names(QueriesEntry)):
        chunks, covered = view.query_set(query_set), view.query_vectors(query_set, space)
        for record in chunks.ranges:
            span = record.first_chunk, record.num_chunks
            wanted = view.embeddable_mask(*span) if query_set == SELF else chunks.key_mask(*span)
            count += int((wanted & ~covered.covered_mask(*span)).sum())
    return count


def _write_metrics(db: Commands, recipe: Recipe, steps: Sequence[UpdateStep], started: float) -> None:
    own = UpdateMetrics(
        finished_at=time.time(),
        elapsed_s=time.monotonic() - started,
        is_success=all(step.outcome != FAILED for step in steps),
        rejected={step.name: step.counts.get("rejected", 0) for step in steps if step.stage == "ingest"},
    )
    write_metrics(Path(recipe.metrics.file or ""), db.view(), own)


def _run_hook(db: Commands, recipe: Recipe, hook: str, outcome: str) -> None:
    """Run a hook without a shell; what it prints goes to stderr, because stdout is the command's own.

    Raises:
        RetroDBError: when it cannot be started, or does not end with 0.
    """
    words = shlex.split(hook)
    told = {
        "RETRODB_DATABASE": db.path,
        "RETRODB_RESULT": "failure" if outcome == FAILED else "success",
        "RETRODB_METRICS": recipe.metrics.file or "",
    }
    try:
        code = subprocess.run(words, env={**os.environ, **told}, stdout=2, check=False).returncode
    except OSError as error:
        what = f"cannot be started: {error.strerror}"
        raise RetroDBError(what, where=words[0], remedy="Check the recipe.") from error
    if code:
        raise RetroDBError(f"the hook ended with {code}", where=hook, remedy="Look at what it printed.")
