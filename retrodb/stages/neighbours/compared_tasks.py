"""The tasks that say what the rows of a table are compared with: they count what is new and what is lost, and store it.

Ids that can be neighbours follow from row bitmaps. Only a table that is restricted to some documents reads these. A range that is
as it was, by the digest of its files' rows and its tombstones, is not looked at again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from retrodb.config import NeighboursParams
from retrodb.engine.groups import groups_of
from retrodb.engine.run import Engine
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import bitmap_of
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import coverage_of, parts_of
from retrodb.stages.neighbours.compared_states import ComparedStates, split_ranges
from retrodb.stages.neighbours.restriction import Restriction
from retrodb.stages.neighbours.table_rows import query_rows
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.planning_tasks import run_planning_tasks
from retrodb.stages.transaction import Transaction
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedRange, ComparedSets, write_compared
from retrodb.view.coverage import Coverage
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

if TYPE_CHECKING:
    from pyroaring import BitMap

_TASK_CHUNKS = 1 << 24  # whose bitmaps a task reads: 2 MiB for each side
_SMALL_CHUNKS, _SMALL_READ_CHUNKS = 1 << 26, 1 << 20
"""Whose bitmaps, or whose documents too, one process reads before others have started."""
_MOST_SMALL_FILES = 32  # of a table, which are otherwise stored again in few large ones
_MIN_SPAN_CHUNKS = 1 << 15  # what a range counts at least, so that a task has at most 512 of them


@dataclass(frozen=True)
class TableInputs:
    """What is compared with what in a table."""

    snapshot: PlannedSnapshot
    table: str
    queries: str
    space: str
    params: NeighboursParams

    @staticmethod
    def of(table: NeighbourTable) -> TableInputs:
        """Those of a table that was computed."""
        entry = table.entry
        return TableInputs(PlannedSnapshot.of(table.view), table.name, entry.queries, entry.space, entry.params)

    def states(self, view: View) -> ComparedStates:
        """The digests of what is compared in the snapshot, which a view shows."""
        return ComparedStates(view, self.queries, self.space, self.params)


@dataclass(frozen=True)
class ComparedPayload:
    """Some ranges of one side."""

    inputs: TableInputs
    side: str
    spans: tuple[ChunkRange, ...]
    states: tuple[str, ...] = ()  # of the ranges, where they are stored


@dataclass(frozen=True)
class ComparedCounts:
    """Ids of one side."""

    num_now: int  # that are compared now
    num_new: int  # of these, the ones that the table was not compared with
    num_lost: int  # that it was compared with, and that are deleted or not chosen now

    def __add__(self, other: ComparedCounts) -> ComparedCounts:
        return ComparedCounts(
            self.num_now + other.num_now, self.num_new + other.num_new, self.num_lost + other.num_lost
        )


COUNT = TaskKind[ComparedPayload, ComparedCounts]("compared-count", 1, ComparedCounts)
STORE = TaskKind[ComparedPayload, NoResult]("compared", 2, NoResult)


def count_compared(context: Context, view: View, inputs: TableInputs) -> tuple[ComparedCounts, ComparedCounts]:
    """What a table was compared with and is compared with now: chunks of the database, and rows of the query set.

    Tasks look only at ranges that are not as they were.
    """
    before, states = compared_before(view, inputs.table), inputs.states(view)
    counts = dict.fromkeys((DATABASE, QUERIES), ComparedCounts(0, 0, 0))
    payloads = list[ComparedPayload]()
    for side in counts:
        ranges = split_ranges(before, states, side)
        counts[side] += ComparedCounts(sum(stored.num_rows for stored in ranges.unchanged), 0, 0)
        payloads += (ComparedPayload(inputs, side, group) for group in _groups(ranges.to_look_at))
    tasks = [COUNT.task(payload, weight=_num_chunks(payload)) for payload in payloads]
    engine = _engine_for(context, inputs, payloads)
    results = run_planning_tasks(context, "compared-count", tasks, run_count_compared, unit="chunks", engine=engine)
    for payload, result in zip(payloads, results, strict=True):
        counts[payload.side] += result
    return counts[DATABASE], counts[QUERIES]


def store_compared(transaction: Transaction, inputs: TableInputs) -> None:
    """Add the files that say what the rows of a table are compared with now to a change."""
    states = inputs.states(transaction.view)
    _store(transaction, inputs, states, states.spans)


def replace_compared(transaction: Transaction, inputs: TableInputs) -> None:
    """The same for a table that has such files: those of which no range has changed stay, and the others are dropped."""
    view, sides = transaction.view, (DATABASE, QUERIES)
    before, states = compared_before(view, inputs.table), inputs.states(view)
    files, stored = (
        view.manifest.files("joined", inputs.table),
        [each for side in sides for each in before.stored(side)],
    )
    unchanged = {each for side in sides for each in split_ranges(before, states, side).unchanged}
    num_chunks = Counter[int]()
    for each in stored:
        num_chunks[each.file] += each.span.num_chunks
    kept = num_chunks.keys() - {each.file for each in stored if each not in unchanged}
    small = {file for file in kept if num_chunks[file] < _TASK_CHUNKS // 2}
    if len(small) > _MOST_SMALL_FILES:
        kept -= small
    known = {(each.side, each.span) for each in stored if each.file in kept}
    rest = {side: [span for span in spans if (side, span) not in known] for side, spans in states.spans.items()}
    _store(transaction, inputs, states, rest)
    transaction.drop_files(record for number, record in enumerate(files) if number not in kept)


def _store(
    transaction: Transaction, inputs: TableInputs, states: ComparedStates, spans: Mapping[str, Sequence[ChunkRange]]
) -> None:
    payloads = [
        ComparedPayload(inputs, side, group, tuple(states.of(side, span) for span in group))
        for side, of_side in spans.items()
        for group in _groups(of_side)
    ]
    tasks = [STORE.task(payload, weight=_num_chunks(payload)) for payload in payloads]
    engine = _engine_for(transaction.context, inputs, payloads)
    transaction.add_files(transaction.run_tasks(tasks, run_store_compared, engine=engine, unit="chunks"))


def _groups(spans: Sequence[ChunkRange]) -> Iterable[tuple[ChunkRange, ...]]:
    return groups_of(spans, lambda span: max(span.num_chunks, _MIN_SPAN_CHUNKS), _TASK_CHUNKS)


def _engine_for(context: Context, inputs: TableInputs, payloads: Sequence[ComparedPayload]) -> Engine:
    """The context's engine, or one process where starting more takes longer than the work."""
    most = _SMALL_READ_CHUNKS if inputs.params.is_restricted else _SMALL_CHUNKS
    return context.engine.here() if sum(map(_num_chunks, payloads)) <= most else context.engine


def _num_chunks(payload: ComparedPayload) -> int:
    return sum(span.num_chunks for span in payload.spans)


def run_count_compared(
    storage: Storage, task: Task[ComparedPayload, ComparedCounts], clock: str
) -> TaskRecord[ComparedCounts]:
    """Count the ids of some ranges."""
    del clock
    payload, counts = task.payload, ComparedCounts(0, 0, 0)
    side, inputs = compared_sides(storage, payload.inputs), payload.inputs
    before = compared_before(side.view, inputs.table)
    for span in payload.spans:
        now, known = side.rows(payload.side, span), before.rows(payload.side, *span)
        counts += ComparedCounts(len(now), len(now - known), len(known - now))
    return TaskRecord(task.id, result=counts)


def run_store_compared(storage: Storage, task: Task[ComparedPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Publish the ids of some ranges."""
    del clock
    payload, side = task.payload, compared_sides(storage, task.payload.inputs)
    ranges = [
        ComparedRange.of(payload.side, span, side.rows(payload.side, span), state)
        for span, state in zip(payload.spans, payload.states, strict=True)
    ]
    return TaskRecord(task.id, (publish_compared(storage, payload.inputs.table, task.id, ranges),))


def publish_compared(storage: Storage, table: str, task: str, ranges: Iterable[ComparedRange]) -> FileRecord:
    """Publish a file of compared sets."""
    write = partial(write_compared, ranges=ranges)
    return publish(storage, "joined", path_of("joined", name=table, task=task), write, name=table)


@dataclass(frozen=True)
class ComparedSides:
    """What the rows of a table are compared with now."""

    view: View
    inputs: TableInputs
    parts: Coverage  # of the space
    restriction: Restriction | None

    def rows(self, side: str, span: ChunkRange) -> BitMap:
        """The ids of a side in a range, relative to its start."""
        view, inputs = self.view, self.inputs
        if side == QUERIES:
            return query_rows(view, inputs.queries, inputs.space, span)
        rows = self.parts.covered_rows(*span) & view.chunks.live_rows(*span)  # a part has keys only
        if rows and not view.is_all_screened(*span):
            rows &= bitmap_of(np.flatnonzero(view.screened_mask(*span)))
        if rows and self.restriction is not None:
            for record in view.chunks.overlapping("documents", *span):
                rows &= self.restriction.rows_of(record)
        return rows


@lru_cache(maxsize=1)
def compared_sides(storage: Storage, inputs: TableInputs) -> ComparedSides:
    """The sides of a table, opened once per process."""
    view = planned_view(storage, inputs.snapshot)
    params = inputs.params
    return ComparedSides(
        view,
        inputs,
        coverage_of(view, parts_of(view, inputs.space)),
        Restriction.of(view, params.where, params.sample, params.seed),
    )


@lru_cache(maxsize=1)
def compared_before(view: View, table: str) -> ComparedSets:
    """What the rows of a table were compared with, opened once per process."""
    return ComparedSets.read(view, table)
