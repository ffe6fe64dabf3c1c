"""A join that is split by ranges of lists, from its first task to its last: what each task does is in `range_payloads.py`.

A small database is one range, and `join_task.py` joins its rows without files between tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from retrodb.ann.routing import Probes, lists_at_most, more_probes, route_bounds
from retrodb.engine.groups import groups_of
from retrodb.engine.run import Engine, add_counts
from retrodb.engine.task import NoResult, P, Task, TaskFunction, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.file_list import publish_file_list
from retrodb.stages.index.drift_task import sizes_of_lists
from retrodb.stages.index.live_parts import parts_of
from retrodb.stages.neighbours.block_join import JoinHardware
from retrodb.stages.neighbours.compared_tasks import TableInputs
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.stages.neighbours.range_payloads import (
    COLLECT,
    HOME,
    REMOTE,
    ROUTE,
    ROWS,
    CollectPayload,
    HomePayload,
    RangeJoin,
    RemotePayload,
    RoutePayload,
    TableRowsPayload,
)
from retrodb.stages.neighbours.range_results import run_collect_task, run_rows_task
from retrodb.stages.neighbours.range_scan import run_home_task, run_remote_task, run_route_task
from retrodb.stages.transaction import Transaction

_GROUP_ROWS = 1 << 20  # query rows that a range joins in one task at least
_MOST_GROUPS = 8  # each group of spans reads every range once


@dataclass(frozen=True)
class RangeJoinResult:
    """The rows of a table that were joined by ranges."""

    records: list[TaskRecord[NoResult]]  # of the tasks that wrote the rows of each span
    ranges_per_row: float  # that a row was sent to, its home range included
    exchanged_bytes: int  # of the files that tasks left for each other; each is written once, and read once


def join_by_ranges(
    transaction: Transaction,
    inputs: TableInputs,
    spans: Sequence[ChunkRange],
    probes: Probes,
    list_sizes: FileRecord | None,
    num_ranges: int,
    size: JoinSize,
    hardware: JoinHardware,
) -> RangeJoinResult:
    """Join the rows of all spans.

    Args:
        probes: lists that each row reads.
        list_sizes: of a restricted table, the chunks in each list.
        num_ranges: of lists, if there are as many lists that are not empty.
        size: of the join with one range of lists.
    """
    view, run = transaction.view, transaction.run
    sizes_L = sizes_of_lists(transaction.context, run, parts_of(view, inputs.space), size.num_lists)
    route_ranges = probes.routing.num_ranges if probes.routing else 0
    join = RangeJoin(run.id, inputs, range_bounds(sizes_L, num_ranges, route_ranges), list_sizes)
    with transaction.context.engine.sharing_processes() as engine:
        engine = engine.with_processes(1) if hardware.device != "cpu" else engine
        phases = _Phases(transaction, engine, join, size, hardware)
        for group in span_groups(spans, join.num_ranges):
            phases.join_group(group, probes)
        extra_bytes = size.range_bytes(join.num_ranges)
        records = phases.run([ROWS.task(payload) for payload in phases.rows], run_rows_task, extra_bytes)
    counts = phases.counts
    return RangeJoinResult(records, 1 + counts["sent"] / max(1, counts["rows"]), phases.exchanged_bytes)


def forget_exchange(transaction: Transaction) -> None:
    """Delete what only the tasks needed, after the commit. If this is interrupted, garbage collection does it."""
    storage = transaction.context.storage
    for path in storage.list(path_of("runs", run=transaction.run.id, file="join")):
        storage.delete(path)
    storage.remove_empty_folders("runs")


def range_bounds(sizes_L: Int64Array, num_ranges: int, num_routed: int = 0) -> tuple[int, ...]:
    """Bounds of ranges of lists with about as many rows each; every range has a list.

    Args:
        num_routed: ranges that rows are routed to, if any. The bounds are bounds of these, too, so that a row that reads few of
            them is sent to few ranges; only a range that would have more than twice the average of rows is cut inside them.
    """
    if num_routed == 0:
        return _equal_bounds(sizes_L, num_ranges)
    starts, routed = np.concatenate([[0], np.cumsum(sizes_L)]), route_bounds(len(sizes_L), num_routed)
    targets = starts[-1] * np.arange(1, num_ranges) // num_ranges
    nearest = np.abs(starts[routed][None, :] - targets[:, None]).argmin(axis=1)
    bounds = np.unique(np.concatenate([[0], routed[nearest], [len(sizes_L)]])).tolist()
    most, cut = 2 * int(starts[-1]) // num_ranges, [0]
    for first, end in pairwise(bounds):
        rows = int(starts[end] - starts[first])
        count = -(-rows // most) if most else 1
        cut += [first + bound for bound in _equal_bounds(sizes_L[first:end], count)[1:]]
    return tuple(cut)


def _equal_bounds(sizes_L: Int64Array, num_ranges: int) -> tuple[int, ...]:
    ends = np.cumsum(sizes_L)
    targets = ends[-1] * np.arange(1, num_ranges) // num_ranges if len(ends) else np.empty(0, np.int64)
    inner = np.unique(np.clip(np.searchsorted(ends, targets) + 1, 1, max(1, len(sizes_L) - 1)))
    return (0, *(bound for bound in inner.tolist() if bound < len(sizes_L)), len(sizes_L))


def span_groups(spans: Sequence[ChunkRange], num_ranges: int) -> list[range]:
    """The numbers of consecutive spans that are joined together: so many that a task has work, and few groups."""
    num_rows = sum(span.num_chunks for span in spans)
    most = max(_GROUP_ROWS * num_ranges, -(-num_rows // _MOST_GROUPS))
    groups = groups_of(range(len(spans)), lambda number: spans[number].num_chunks, most)
    return [range(group[0], group[-1] + 1) for group in groups]


class _Phases:
    """Runs the tasks of one join, a group of spans after another."""

    def __init__(
        self, transaction: Transaction, engine: Engine, join: RangeJoin, size: JoinSize, hardware: JoinHardware
    ) -> None:
        self._transaction, self._engine, self._join = transaction, engine, join
        self._size, self._hardware = size, hardware
        self.rows: list[TableRowsPayload] = []  # one for each span
        self.counts = {"rows": 0, "sent": 0}
        self.exchanged_bytes = 0

    def join_group(self, spans: range, probes: Probes) -> None:
        """Find the neighbours of the rows of a group of spans, with more lists for those that find too few."""
        join, results, round_ = self._join, list[FileRecord](), 0
        routes = [RoutePayload(join, probes, span, None) for span in spans]
        while routes:
            name = f"{spans[0]}-{round_}"
            collected = self._join_rows(name, routes, probes)
            results += [record.files[0] for record in collected]
            starved = [record.files[1] for record in collected if record.counts["starved"]]
            most = lists_at_most(probes.most_lists, self._size.num_lists)
            probes, round_ = Probes(more_probes(probes.nprobe, most), None, probes.most_lists), round_ + 1
            routes = [RoutePayload(join, probes, -1, self._list(f"starved-{name}", starved))] if starved else []
        listed = self._list(f"results-{spans[0]}", results)
        self.rows += [TableRowsPayload(join, span, listed) for span in spans]

    def _join_rows(self, name: str, routes: Sequence[RoutePayload], probes: Probes) -> list[TaskRecord[NoResult]]:
        """Join some rows with all ranges."""
        join, numbers = self._join, range(self._join.num_ranges)
        extra_bytes = self._size.with_nprobe(probes.nprobe).range_bytes(join.num_ranges)
        routed = self.run([ROUTE.task(route) for route in routes], run_route_task, extra_bytes)
        files = self._list(f"routed-{name}", [record.files[0] for record in routed])
        tasks = [HOME.task(HomePayload(join, number, files)) for number in numbers]
        hardware = self._hardware
        if hardware.device == "cpu":
            hardware = replace(hardware, threads=self._transaction.context.threads_for(tasks, extra_bytes))
        homes = self.run(tasks, partial(run_home_task, hardware=hardware), extra_bytes)
        counts = add_counts(homes)
        self.counts = {count: total + counts[count] for count, total in self.counts.items()}
        sent = self._list(f"sent-{name}", [record.files[1] for record in homes])
        remotes = self.run(
            [REMOTE.task(RemotePayload(join, number, sent)) for number in numbers],
            partial(run_remote_task, hardware=hardware),
            extra_bytes,
        )
        found = self._list(f"found-{name}", [record.files[0] for record in remotes])
        wanted = min(join.width, counts["allowed"])
        collects = [
            COLLECT.task(CollectPayload(join, number, probes, wanted, files, home.files[0], found))
            for number, home in enumerate(homes)
        ]
        return self.run(collects, partial(run_collect_task, threads=hardware.threads), extra_bytes)

    def run(
        self, tasks: Sequence[Task[P, NoResult]], function: TaskFunction[P, NoResult], extra_bytes: int
    ) -> list[TaskRecord[NoResult]]:
        """Run tasks of one kind."""
        records = self._transaction.run_tasks(tasks, function, engine=self._engine, extra_bytes=extra_bytes)
        exchanged = (file for record in records for file in record.files if file.kind == "runs")
        self.exchanged_bytes += sum(file.digest.size_bytes for file in exchanged)
        return records

    def _list(self, name: str, files: Sequence[FileRecord]) -> FileRecord:
        """A list of files, for payloads."""
        return publish_file_list(self._transaction.context.storage, self._join.run, name, files)
