"""Stage repair: update neighbour tables by patches, for a fraction of the cost of computing them.

What a row stores is complete up to a bound (see `repair_task`). So a repair does the following:

- Deleted chunks leave the list, and the bound stays.
- New chunks (added, undeleted, screened or indexed) enter the list where they are below the bound. Beyond the bound there
  can be old chunks that are nearer. So only new chunks are compared with old rows.
- A row with fewer than k neighbours below a finite bound is recomputed, unless it read as many lists as a row may. New rows
  are computed.
- If the vectors, the query rows, the clusters or the inverted lists differ, the whole table is recomputed.

With an exact index the first k neighbours equal those of a rebuild, ids and distances. With inverted lists a row is
compared with the new chunks in the lists that it reads, chosen by the table's own routing if it has one, and a row that lacks
neighbours with all new chunks. The rows to look at are these, and those whose nearest list is near a new chunk, found by their
codes. Rows of another query set have no codes: their vectors are multiplied with those of the new chunks, so the cost is linear
in the query set, and independent of the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from retrodb.engine.run import add_counts
from retrodb.engine.task import NoResult, Task, TaskRecord
from retrodb.engine.task_memory import MAIN_MIB, process_bytes
from retrodb.format.entries import IndexEntry, TableDependencies, TableEntry
from retrodb.format.records import ChunkRange
from retrodb.memory import MIB
from retrodb.stages.context import Context
from retrodb.stages.neighbours.block_join import JoinHardware, chosen_device
from retrodb.stages.neighbours.command import NeighboursPlan, execute_neighbours, plan_neighbours
from retrodb.stages.neighbours.compared_tasks import TableInputs, count_compared, replace_compared
from retrodb.stages.neighbours.filled_lists import store_filled_lists
from retrodb.stages.neighbours.join_memory import LEAST_BLOCK_ROWS, JoinSize
from retrodb.stages.neighbours.recall_sample import forget_truth
from retrodb.stages.neighbours.repair_task import KIND, STAGE_VERSION, RepairPayload, run_repair_task
from retrodb.stages.neighbours.table_inputs import live_state, refuse_missing
from retrodb.stages.neighbours.table_rows import spans_of, table_dependencies
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

_COUNTS = ("rows", "computed", "improved", "short", "capped")
_SMALL_WORK, _LEAST_NEW = 1 << 32, 64
"""Rows times new chunks, at least so many, that one process looks at before others have started: about ten seconds."""
_TASK_IDS = 1 << 20  # of query rows, as many as a shard has: what a task does once costs little for each small shard
_NEW_CHUNKS_PER_ROW = 4  # whose lists are found in the time that computing a row takes; an exact search needs no lists


@dataclass(frozen=True)
class TableRepairResult:
    """What a repair of one table did."""

    snapshot: int
    table: str
    num_rows: int  # of the table
    num_new_rows: int  # that the table did not have; all rows when it is recomputed
    num_new_chunks: int  # that its rows had not been compared with
    num_lost_chunks: int  # that its rows were compared with, and that are deleted now
    num_recomputed: int  # rows: new ones, and those that deletions left with fewer than k neighbours
    num_improved: int  # rows that new chunks entered
    num_short: int  # rows with fewer than k neighbours
    dry_run: bool = False
    num_capped: int = 0  # of these, rows that read as many lists as a row may: there may be more


@dataclass(frozen=True)
class TableRepairPlan:
    """The repair of one table."""

    view: View
    inputs: TableInputs
    entry: TableEntry  # of the table now
    dependencies: TableDependencies  # of the table after the repair
    hardware: JoinHardware  # its device is as asked for
    rebuild: NeighboursPlan | None  # of the whole table, where no row or too few can be kept
    num_chunks: int  # that its rows are compared with after the repair
    is_current: bool  # there is nothing to repair
    loses_ids: bool  # rows of the table, or chunks that they were compared with, are deleted or not chosen now
    result: TableRepairResult  # that a dry run prints


def run_repair_neighbours(
    context: Context,
    *,
    table: str | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> list[TableRepairResult]:
    """Repair one table, or all, with one commit for each that has something to repair. A dry run compares no vectors.

    Args:
        device: device of the join of recomputed rows, as in `run_neighbours`.

    Raises:
        MissingStep: when there is no such table, or chunks are not embedded or indexed.
        UsageError: for too little memory, or, when there is something to join, an unknown device.
        ConflictError: when the table or its space changed since the plan.
    """
    hardware = JoinHardware(context.num_workers, context.memory_limit, device)
    results = []
    for name in [table] if table else context.view().snapshot.names(TableEntry):
        plan = plan_repair_neighbours(context, context.view(), name, hardware)
        if dry_run and plan.rebuild is not None:
            forget_truth(context, plan.rebuild.inputs)
        results.append(plan.result if dry_run else execute_repair_neighbours(context, plan))
    return results


def plan_repair_neighbours(context: Context, view: View, table: str, hardware: JoinHardware) -> TableRepairPlan:
    """Find how much a table was not compared with, in tasks. Raises MissingStep as `run_repair_neighbours`.

    Where the table has to be recomputed, its operating point is chosen here, as in `plan_neighbours`.
    """
    _check_memory(view, table, hardware)
    inputs, entry = TableInputs.of(of_table := NeighbourTable(view, table)), of_table.entry
    refuse_missing(view, entry.queries, entry.space)
    dependencies = table_dependencies(view, entry.queries, entry.space, entry.params)
    chunks, rows = count_compared(context, view, inputs)
    is_reusable = entry.dependencies is not None and dependencies.is_reusable(entry.dependencies)
    num_known = rows.num_now - rows.num_new
    if not is_reusable or (entry.nprobe and num_known * _NEW_CHUNKS_PER_ROW < chunks.num_new):
        return _plan_rebuild(context, view, inputs, dependencies, hardware, num_chunks=chunks.num_now)
    num_lost, loses_ids = chunks.num_lost + entry.lost_chunks, chunks.num_lost + rows.num_lost > 0
    result = TableRepairResult(
        snapshot=view.snapshot.number,
        table=table,
        num_rows=rows.num_now,
        num_new_rows=rows.num_new,
        num_new_chunks=chunks.num_new,
        num_lost_chunks=num_lost,
        num_recomputed=0,
        num_improved=0,
        num_short=entry.num_short,
        num_capped=entry.num_capped,
        dry_run=True,
    )
    is_current = not (chunks.num_new or num_lost or rows.num_new or rows.num_lost)
    num_chunks = chunks.num_now
    return TableRepairPlan(view, inputs, entry, dependencies, hardware, None, num_chunks, is_current, loses_ids, result)


def _check_memory(view: View, table: str, hardware: JoinHardware) -> None:
    """Raises NotEnoughMemory when the join of the table's rows does not fit into the limit."""
    entry = view.snapshot.entry(TableEntry, table)
    if entry is not None and view.snapshot.entry(IndexEntry, entry.space) is not None:
        spans = spans_of(view, entry.queries)
        size = JoinSize.of(view, entry.space, entry.params, spans, entry.nprobe, hardware.threads, hardware.device)
        # Few rows are joined again; of many, a block is as large as the memory allows.
        replace(size, task_rows=min(size.task_rows, LEAST_BLOCK_ROWS)).check(hardware.memory_bytes)


def _plan_rebuild(
    context: Context,
    view: View,
    inputs: TableInputs,
    dependencies: TableDependencies,
    hardware: JoinHardware,
    *,
    num_chunks: int,
) -> TableRepairPlan:
    """The plan for a table of which no row can be kept, or too few."""
    rebuild = plan_neighbours(
        context, view, inputs.params, hardware, queries=inputs.queries, space=inputs.space, table=inputs.table
    )
    num_rows = rebuild.result.num_rows
    result = TableRepairResult(
        snapshot=view.snapshot.number,
        table=inputs.table,
        num_rows=num_rows,
        num_new_rows=num_rows,
        num_new_chunks=num_chunks,
        num_lost_chunks=0,
        num_recomputed=0,
        num_improved=0,
        num_short=0,
        dry_run=True,
    )
    entry = view.snapshot.existing(TableEntry, inputs.table)
    return TableRepairPlan(view, inputs, entry, dependencies, hardware, rebuild, num_chunks, False, False, result)


def execute_repair_neighbours(context: Context, plan: TableRepairPlan) -> TableRepairResult:
    """Patch and commit a table, or recompute it as planned. Raises UsageError for an unknown device."""
    if plan.is_current:
        return replace(plan.result, dry_run=False)
    hardware = plan.hardware
    if hardware.device != "auto" or plan.rebuild is not None:  # else the tasks choose it, when they join many rows
        hardware = replace(hardware, device=chosen_device(hardware.device))
    if plan.rebuild is not None:
        return _recompute(context, plan, replace(plan.rebuild, hardware=hardware))
    view, table, entry = plan.view, plan.inputs.table, plan.entry
    state = live_state(view)
    transaction = Transaction.open(
        context,
        view,
        "repair",
        conflict_keys.neighbours(table, entry.space),
        plan={"version": STAGE_VERSION, "table": table, "previous": entry, "state": state},
        arguments={"table": table},
    )
    snapshot, groups = PlannedSnapshot.of(view), _groups(spans_of(view, entry.queries))
    payloads = [RepairPayload(snapshot, table, group, plan.num_chunks) for group in groups]
    tasks = [KIND.task(payload, weight=sum(span.num_chunks for span in payload.spans)) for payload in payloads]
    records = _run_tasks(transaction, plan, tasks, hardware)
    transaction.add_files(records)
    replace_compared(transaction, plan.inputs)
    if entry.filled_lists:
        store_filled_lists(transaction, plan.inputs)
    counts = dict.fromkeys((*_COUNTS, "was_short", "was_capped"), 0) | add_counts(records)
    if not entry.lost_chunks:  # else all rows were looked at
        counts["short"] += entry.num_short - counts["was_short"]
        counts["capped"] += entry.num_capped - counts["was_capped"]
    transaction.counts = {name: counts[name] for name in _COUNTS}
    repaired = replace(
        entry,
        num_rows=counts["rows"],
        num_short=counts["short"],
        num_capped=counts["capped"],
        dependencies=plan.dependencies,
        state=state,
        snapshot=view.snapshot.number,
        lost_chunks=0,
        may_name_deleted=entry.may_name_deleted or plan.loses_ids,
    )
    transaction.set_entry(table, repaired)
    return replace(
        plan.result,
        snapshot=transaction.commit().number,
        num_rows=counts["rows"],
        num_recomputed=counts["computed"],
        num_improved=counts["improved"],
        num_short=counts["short"],
        num_capped=counts["capped"],
        dry_run=False,
    )


def _run_tasks(
    transaction: Transaction,
    plan: TableRepairPlan,
    tasks: Sequence[Task[RepairPayload, NoResult]],
    hardware: JoinHardware,
) -> list[TaskRecord[NoResult]]:
    """Run the tasks in one process with threads, where inputs that they share are read once, or in several if that pays."""
    view, entry, engine, processes, extra_bytes = plan.view, plan.entry, transaction.context.engine, 1, 0
    work = sum(task.weight for task in tasks) * max(_LEAST_NEW, plan.result.num_new_chunks)
    if work > _SMALL_WORK and chosen_device(hardware.device) == "cpu":
        size = JoinSize.of(view, entry.space, entry.params, (), entry.nprobe, 1, "cpu")
        num_ranges = size.num_ranges(hardware.memory_bytes)
        extra_bytes = size.database_bytes if num_ranges == 1 else size.range_bytes(num_ranges)
        processes = engine.num_processes(tasks, process_bytes(tasks, extra_bytes))
    if processes > 1:
        memory_bytes = (hardware.memory_bytes - MAIN_MIB * MIB) // processes
        hardware = JoinHardware(transaction.context.threads_for(tasks, extra_bytes), memory_bytes)
    return transaction.run_tasks(
        tasks,
        partial(run_repair_task, hardware=hardware),
        engine=engine.with_processes(processes),
        extra_bytes=extra_bytes if processes > 1 else 0,
    )


def _groups(spans: Sequence[ChunkRange]) -> Iterator[tuple[ChunkRange, ...]]:
    """Ranges that one task looks at, ascending: few ids between the first and the last, so that arrays of all are small."""
    group: list[ChunkRange] = []
    for span in sorted(spans):
        if group and span.end - group[0].first_chunk > _TASK_IDS:
            yield tuple(group)
            group = []
        group.append(span)
    if group:
        yield tuple(group)


def _recompute(context: Context, plan: TableRepairPlan, rebuild: NeighboursPlan) -> TableRepairResult:
    computed = execute_neighbours(context, rebuild)
    return replace(
        plan.result,
        snapshot=computed.snapshot,
        num_rows=computed.num_rows,
        num_new_rows=computed.num_rows,
        num_recomputed=computed.num_rows,
        num_short=computed.num_short,
        num_capped=computed.num_capped,
        dry_run=False,
    )
