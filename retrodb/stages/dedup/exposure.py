"""Exposure: the rows of a neighbour table that contain n-grams of a test set, in their own text or through neighbours.

The *own text* of a row matches where a shared n-gram touches its chunk, also one that crosses the chunk's border. The
*neighbours* match where an n-gram is in a neighbour's chunk, and the *continuations* where one touches the chunk after it.
The table is compared as it was written, because this is what a trainer read. A match is *live* when today's table still
has it. Tasks read the rows of the table and the chunks that they name, by shard (see `exposure_tasks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from retrodb.engine.groups import groups_of
from retrodb.engine.run import Engine, Run, add_counts, forget_run, open_run
from retrodb.errors import UsageError
from retrodb.format.arrays import growing_array, map_array
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.dedup.exposure_tasks import (
    MATCH,
    NAMED,
    ROWS,
    ComparedTable,
    ExposedRow,
    MatchPayload,
    NamedPayload,
    RowsPayload,
    run_exposed_rows,
    run_match,
    run_named,
)
from retrodb.stages.dedup.testset import registered_testset
from retrodb.stages.file_list import publish_file_list
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.store.publish import publish
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

_TASK_ROWS = 1 << 20  # of the table, whose neighbours a task reads
_SMALL_ROWS = 1 << 12  # that one process compares before others have started
_MIN_SPAN_ROWS = 1 << 13  # what a range counts at least, so that a task has at most 128 of them
_TASK_IDS = 1 << 20  # chunks that a task compares: about ten minutes


@dataclass(frozen=True)
class ExposureResult:
    """How much of a table contains n-grams of a test set."""

    table: str
    testset: str
    num_rows: int  # of the table
    num_consumed_samples: int  # the first rows of the table, in the order of their numbers
    num_exposed_seen: int  # exposed rows among them
    num_exposed_unseen: int  # exposed rows after them
    num_exposed_unseen_live: int  # of these, the ones that today's table would expose too
    exposed: tuple[ExposedRow, ...]  # by row


def run_exposure(
    context: Context,
    testset: str,
    *,
    table: str | None = None,
    consumed_samples: int = 0,
    as_of: int | str | None = None,
) -> ExposureResult:
    """Find the exposed rows of a neighbour table. Interrupted, the same command continues.

    Args:
        consumed_samples: number of rows that the training has consumed, in the order of their numbers.

    Raises:
        UsageError: when the test set is not registered.
        MissingStep: when there is no such table.
    """
    if consumed_samples < 0:
        raise UsageError(f"{consumed_samples} consumed samples", remedy="Give 0 or more.")
    view = context.view(as_of)
    registered_testset(view, testset)
    neighbours = NeighbourTable(view, table)
    compared = ComparedTable(PlannedSnapshot.of(view), _computed(context, neighbours), testset, neighbours.name)
    plan = {"compared": compared, "consumed_samples": consumed_samples}
    run = open_run(context.storage, "exposure", plan, context.clock)
    spans = list(_spans(neighbours, view.query_set(neighbours.query_set)))
    num_rows = [neighbours.num_rows_in(*span) for span in spans]
    exposed = _exposed(context, run, view, compared, _groups(spans, num_rows), consumed_samples)
    forget_run(run)
    return ExposureResult(
        table=neighbours.name,
        testset=testset,
        num_rows=sum(num_rows),
        num_consumed_samples=min(consumed_samples, sum(num_rows)),
        num_exposed_seen=sum(row.is_seen for row in exposed),
        num_exposed_unseen=sum(not row.is_seen for row in exposed),
        num_exposed_unseen_live=sum(row.is_live and not row.is_seen for row in exposed),
        exposed=tuple(exposed),
    )


@dataclass(frozen=True)
class _RowGroup:
    """Ranges of rows that one task reads."""

    spans: tuple[ChunkRange, ...]
    num_rows: int
    first_sample: int  # position in the table of the first row


def _groups(spans: Sequence[ChunkRange], num_rows: Sequence[int]) -> list[_RowGroup]:
    """The rows of ranges, cut into tasks."""
    pairs = zip(spans, num_rows, strict=True)
    groups = list(groups_of(pairs, lambda pair: max(pair[1], _MIN_SPAN_ROWS), _TASK_ROWS))
    counts = [sum(rows for _, rows in group) for group in groups]
    first_samples = accumulate(counts, initial=0)
    return [
        _RowGroup(tuple(span for span, _ in group), count, first)
        for group, count, first in zip(groups, counts, first_samples, strict=False)
    ]


def _exposed(
    context: Context, run: Run, view: View, compared: ComparedTable, groups: Sequence[_RowGroup], consumed_samples: int
) -> list[ExposedRow]:
    """The exposed rows, ascending."""
    is_small = sum(group.num_rows for group in groups) <= _SMALL_ROWS
    engine = context.engine.here() if is_small else context.engine
    matches = _find_matches(context, engine, run, view, compared, groups)
    tasks = [
        ROWS.task(RowsPayload(compared, matches, group.spans, group.first_sample, consumed_samples), (), group.num_rows)
        for group in groups
    ]
    records = engine.run(run, tasks, run_exposed_rows, context.progress, unit="rows")
    return [row for record in records for row in record.result.rows]


def _find_matches(
    context: Context, engine: Engine, run: Run, view: View, compared: ComparedTable, groups: Sequence[_RowGroup]
) -> FileRecord:
    """All matches of the test set in chunks that the table names, in one file of the run."""
    tasks = [NAMED.task(NamedPayload(run.id, compared, group.spans), weight=group.num_rows) for group in groups]
    records = engine.run(run, tasks, run_named, context.progress, unit="rows")
    named = publish_file_list(context.storage, run.id, "named", [file for record in records for file in record.files])
    num_tasks = add_counts(records).get("ids", 0) // _TASK_IDS + 1
    ranges = _ranges(view, num_tasks)
    to_match = [MATCH.task(MatchPayload(run.id, compared, named, span), weight=span.num_chunks) for span in ranges]
    matched = engine.run(run, to_match, run_match, context.progress, unit="chunks")
    paths = [context.storage.local(file.path) for record in matched for file in record.files]
    path = path_of("runs", run=run.id, file="exposure/matches.npy")
    return publish(context.storage, "runs", path, partial(_join, parts=paths))


def _join(local: Path, parts: Sequence[Path]) -> None:
    """Write matches of several tasks into one file."""
    with growing_array(local, np.dtype(np.int64), (3,)) as append:
        for part in parts:
            append(map_array(part))


def _ranges(view: View, count: int) -> Iterator[ChunkRange]:
    """Whole shards in about so many ranges of ids, ascending."""
    shards = [view.shards.record(number).span for number in range(len(view.shards))]
    most = sum(shard.num_chunks for shard in shards) // count + 1
    for group in groups_of(shards, lambda shard: shard.num_chunks, most):
        yield ChunkRange(group[0].first_chunk, group[-1].end - group[0].first_chunk)


def _computed(context: Context, table: NeighbourTable) -> PlannedSnapshot | None:
    """The snapshot that the table was computed on; None when it has expired."""
    try:
        return PlannedSnapshot.of(context.view(table.entry.snapshot))
    except UsageError:
        return None


def _spans(table: NeighbourTable, queries: ChunkSet) -> Iterator[ChunkRange]:
    """Ranges that together have all rows of a table, ascending: those of the query set, and gaps whose documents are lost."""
    end, last = 0, ChunkRange(max((file.span.end for file in table.files), default=0), 0)
    for span in [*(record.span for record in queries.ranges), last]:
        if end < span.first_chunk:
            yield ChunkRange(end, span.first_chunk - end)
        if span.num_chunks:
            yield span
        end = max(end, span.end)
