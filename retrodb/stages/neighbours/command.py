"""Stage neighbours: the nearest live chunks in a space of every row of a query set.

Exclusions act inside the search, so a row has fewer than k neighbours only when the database has no more for it, or when the row
has read as many lists as a row may. Rows keep spare neighbours beyond k: after a deletion they take the free positions without
a new search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from retrodb.ann.routing import probes_of
from retrodb.config import NeighboursParams
from retrodb.engine.run import add_counts
from retrodb.engine.task import NoResult, TaskRecord
from retrodb.errors import UsageError
from retrodb.format.entries import IndexEntry, RoutingCost, TableEntry
from retrodb.format.kinds import TABLE_KINDS
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import EXCLUSIONS, open_codebook
from retrodb.stages.index.operating_point import EXACT, OperatingPoint, candidate_cap, stored_point
from retrodb.stages.neighbours.block_join import JoinHardware, chosen_device
from retrodb.stages.neighbours.compared_tasks import TableInputs, store_compared
from retrodb.stages.neighbours.filled_lists import store_filled_lists
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.stages.neighbours.join_task import KIND, STAGE_VERSION, NeighboursPayload, run_neighbours_task
from retrodb.stages.neighbours.range_join import RangeJoinResult, forget_exchange, join_by_ranges, span_groups
from retrodb.stages.neighbours.recall_sample import forget_truth, measured_point, measured_recall, sizes_of_filled_lists
from retrodb.stages.neighbours.restriction import Restriction
from retrodb.stages.neighbours.table_inputs import live_state, refuse_missing
from retrodb.stages.neighbours.table_rows import num_query_rows, spans_of, table_dependencies
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class NeighboursResult:
    """What a neighbours run did."""

    snapshot: int
    table: str
    query_set: str
    space: str
    num_rows: int  # of the table
    k: int
    spare_neighbours: int
    num_short: int  # rows with fewer than k neighbours
    nprobe: int  # lists that each row was compared with, with a routing at most; 0 for all vectors
    recall_expected: float  # recall@k that these lists were chosen for
    recall_reached: float | None  # recall@k of a sample of rows of the table; None in a dry run
    dry_run: bool = False
    codes_recall: float | None = None  # recall@10 of the codes where the space keeps no vectors; it limits the others
    ranges_per_row: float = 1.0  # ranges of lists that each row was compared with
    exchanged_bytes: int = 0  # of the files that tasks of several ranges left for each other
    assignment_recall: float | None = None  # of the neighbours that an exact assignment finds; None: it is exact
    route_ranges: int = 0  # ranges of lists that rows are routed to; 0: no routing
    routing: RoutingCost | None = None  # what it saves and costs a row; None: each row reads its nearest lists
    num_capped: int = 0  # of the short rows, those that read as many lists as a row may: there may be more
    num_unnamed_rows: int | None = None  # with the exclusion `sequence`: rows that name no document of the database


@dataclass(frozen=True)
class NeighboursPlan:
    """A neighbour table to compute."""

    view: View
    table: str
    params: NeighboursParams
    entry: TableEntry  # without what is measured on the finished table
    previous: TableEntry | None  # entry of an older table of the same name
    is_current: bool  # the older table was computed from the same inputs
    spans: list[ChunkRange]  # of query rows
    size: JoinSize
    inputs: TableInputs
    hardware: JoinHardware
    result: NeighboursResult  # that a dry run prints


def run_neighbours(
    context: Context,
    params: NeighboursParams,
    *,
    queries: str = SELF,
    space: str | None = None,
    table: str | None = None,
    device: str = "auto",
    list_ranges: int | None = None,
    dry_run: bool = False,
) -> NeighboursResult:
    """Compute a whole neighbour table.

    Args:
        device: device of the join. It changes no byte of the table, with one exception: another device can choose differently
            among candidates with tied codes, before the exact distances decide.
        list_ranges: ranges of lists that the join is split into; None chooses them by the size and the memory limit. They
            change no byte of the table.

    Raises:
        MissingStep: when the space or the query set is not embedded, or the space is not indexed.
        UsageError: for invalid parameters, an unknown query set or device, or too little memory.
        ConflictError: when the table or the space changed since the plan.
    """
    if list_ranges is not None and list_ranges < 1:
        raise UsageError(
            f"{list_ranges} ranges of lists", remedy="Give at least 1 with --list-ranges, or leave it out."
        )
    hardware = JoinHardware(context.num_workers, context.memory_limit, chosen_device(device), list_ranges)
    plan = plan_neighbours(context, context.view(), params, hardware, queries=queries, space=space, table=table)
    if dry_run:
        forget_truth(context, plan.inputs)
        return plan.result
    return execute_neighbours(context, plan)


def plan_neighbours(
    context: Context,
    view: View,
    params: NeighboursParams,
    hardware: JoinHardware,
    *,
    queries: str = SELF,
    space: str | None = None,
    table: str | None = None,
) -> NeighboursPlan:
    """Check the inputs of a table and choose how many lists each row reads. Raises as `run_neighbours`.

    Where no operating point is stored, tasks measure it: an exact search for a sample of rows. Its result stays in a run, from
    which `execute_neighbours` measures the recall of the table; without that, `forget_truth` deletes it.
    """
    name = space or view.snapshot.default_space
    table = table or (queries if space is None else f"{queries}-{space}")
    _check(params, table)
    view.query_set(queries)  # raises when there is none
    open_codebook(view, name)  # raises where the index is not of this space
    _check_routing(view, name, params)
    Restriction.of(view, params.where, params.sample, params.seed)  # raises for an invalid condition
    refuse_missing(view, queries, name)
    spans = spans_of(view, queries)
    size = JoinSize.of(view, name, params, spans, 0, hardware.threads, hardware.device)
    if params.exact:
        size.check(hardware.memory_bytes)
    previous = view.snapshot.entry(TableEntry, table)
    entry = TableEntry(
        queries=queries, space=name, state=live_state(view), dependencies=table_dependencies(view, queries, name, params),
        **vars(params), nprobe=0, num_rows=0, num_short=0, recall_expected=params.recall, snapshot=view.snapshot.number,
        may_name_deleted=False,
    )  # fmt: skip
    unchanged = previous if previous is not None and previous.is_of_same_origin(entry) else None
    inputs = TableInputs(PlannedSnapshot.of(view), table, queries, name, params)
    is_whole = len({len(view.manifest.files(kind, table)) for kind in ("neighbours", "naming")}) == 1
    if unchanged is not None and params.is_restricted and not is_whole:
        unchanged = None  # repairs may have added lists since its point was chosen
    point = _choose_point(context, view, inputs, unchanged)
    size = size.with_nprobe(point.nprobe)
    size.check(hardware.memory_bytes, hardware.list_ranges)
    entry = replace(
        entry,
        nprobe=point.nprobe,
        recall_expected=point.recall,
        routing=point.routing,
        most_lists=candidate_cap(size.num_lists, point.nprobe),
        filled_lists=point.filled_lists,
    )
    index = view.snapshot.entry(IndexEntry, name)
    result = NeighboursResult(
        snapshot=view.snapshot.number,
        table=table,
        query_set=queries,
        space=name,
        num_rows=num_query_rows(view, queries, name),
        k=params.k,
        spare_neighbours=params.spare_neighbours,
        num_short=0,
        nprobe=point.nprobe,
        recall_expected=point.recall,
        recall_reached=None,
        dry_run=True,
        codes_recall=index.codes_recall if index else None,
        assignment_recall=index.assignment_recall if index else None,
        route_ranges=params.route_ranges,
        routing=point.routing.cost if point.routing else None,
    )
    is_current = unchanged is not None and probes_of(unchanged) == probes_of(entry) and is_whole
    return NeighboursPlan(view, table, params, entry, previous, is_current, spans, size, inputs, hardware, result)


def _choose_point(context: Context, view: View, inputs: TableInputs, unchanged: TableEntry | None) -> OperatingPoint:
    """Which lists each row of the table reads: the stored point of the whole space, else what a sample needs.

    A routing is learned on the sample, so a table with one takes no stored point.

    Args:
        unchanged: the table's entry if it was computed from the same inputs: its measured point is used again.
    """
    params = inputs.params
    if params.exact or view.snapshot.existing(IndexEntry, inputs.space).lists == 1:
        return EXACT
    is_plain = not params.is_restricted and params.route_ranges == 0
    if is_plain and (stored := stored_point(view, inputs.space, params.recall)):
        return stored
    if unchanged:
        return OperatingPoint(unchanged.nprobe, unchanged.recall_expected, unchanged.routing, unchanged.filled_lists)
    return measured_point(context, view, inputs)


def execute_neighbours(context: Context, plan: NeighboursPlan) -> NeighboursResult:
    """Compute and commit a table, unless it is current."""
    view, table, entry, previous = plan.view, plan.table, plan.entry, plan.previous
    if plan.is_current and previous is not None:
        return _result(plan, previous, view.snapshot.number)
    transaction = Transaction.open(
        context,
        view,
        "neighbours",
        conflict_keys.neighbours(table, entry.space),
        plan={"version": STAGE_VERSION, "table": table, "previous": previous, "entry": entry},
        arguments=entry,
    )
    num_ranges = plan.hardware.list_ranges or plan.size.num_ranges(plan.hardware.memory_bytes)
    list_sizes = sizes_of_filled_lists(context, view, plan.inputs) if entry.filled_lists else None
    if num_ranges == 1 or entry.nprobe == 0:
        joined = RangeJoinResult(_join_in_one_range(transaction, plan, list_sizes), 1.0, 0)
    else:
        probes = probes_of(entry)
        joined = join_by_ranges(
            transaction, plan.inputs, plan.spans, probes, list_sizes, num_ranges, plan.size, plan.hardware
        )
    records = joined.records
    if list_sizes is not None:
        store_filled_lists(transaction, plan.inputs, list_sizes)
    transaction.add_files(records)
    reached = 1.0 if entry.nprobe == 0 else measured_recall(transaction, plan.inputs, records)
    store_compared(transaction, plan.inputs)
    transaction.drop_files(_replaced_files(plan))
    counts = transaction.counts = {"rows": 0, "short": 0, "capped": 0, **add_counts(records)}
    entry = replace(
        entry,
        num_rows=counts["rows"],
        num_short=counts["short"],
        num_capped=counts["capped"],
        recall_reached=reached,
    )
    transaction.set_entry(table, entry)
    number = transaction.commit().number
    forget_exchange(transaction)
    result = _result(plan, entry, number)
    return replace(result, ranges_per_row=round(joined.ranges_per_row, 2), exchanged_bytes=joined.exchanged_bytes)


def _join_in_one_range(
    transaction: Transaction, plan: NeighboursPlan, list_sizes: FileRecord | None
) -> list[TaskRecord[NoResult]]:
    """Join the rows of all spans in tasks that read all lists."""
    inputs, snapshot, num_lists = plan.inputs, PlannedSnapshot.of(plan.view), plan.size.num_lists
    tasks = [
        KIND.task(
            NeighboursPayload(
                snapshot, plan.table, inputs.queries, inputs.space, num_lists, probes_of(plan.entry), list_sizes, plan.params,
                tuple(plan.spans[number] for number in group),
            ),
            weight=sum(plan.spans[number].num_chunks for number in group),
        )
        for group in span_groups(plan.spans, 1)
    ]  # fmt: skip
    function = partial(run_neighbours_task, hardware=plan.hardware)
    # One process: its threads keep all cores busy, and the database side is in memory once.
    return transaction.run_tasks(tasks, function, engine=transaction.context.engine.with_processes(1))


def _result(plan: NeighboursPlan, entry: TableEntry, snapshot: int) -> NeighboursResult:
    """The result of a plan, with what was measured on the finished table."""
    return replace(
        plan.result,
        snapshot=snapshot,
        recall_reached=entry.recall_reached,
        num_rows=entry.num_rows,
        num_short=entry.num_short,
        num_capped=entry.num_capped,
        dry_run=False,
    )


def _replaced_files(plan: NeighboursPlan) -> list[FileRecord]:
    """The files of an older table of the same name. Edits stay where they are about the same rows and distances."""
    manifest, previous = plan.view.manifest, plan.previous
    keeps_edits = previous and (previous.queries, previous.space) == (plan.entry.queries, plan.entry.space)
    kinds = [kind for kind in TABLE_KINDS if not (kind == "edits" and keeps_edits)]
    return [file for kind in kinds for file in manifest.files(kind, plan.table)]


def _check(params: NeighboursParams, table: str) -> None:
    if params.k < 1 or params.spare_neighbours < 0:
        raise UsageError(
            f"k of {params.k} with spare_neighbours {params.spare_neighbours}",
            remedy="k is at least 1, spare_neighbours at least 0.",
        )
    if not 0 < params.sample <= 1:
        raise UsageError(f"a sample of {params.sample}", remedy="Give a fraction above 0, at most 1.")
    if unknown := set(params.exclude) - set(EXCLUSIONS):
        raise UsageError(f"unknown exclusion '{min(unknown)}'", remedy=f"Known are: {', '.join(EXCLUSIONS)}.")
    if not table or "/" in table or table.startswith("."):
        raise UsageError(f"'{table}' is not a valid name of a table", remedy="Give a short --table without '/'.")


def _check_routing(view: View, space: str, params: NeighboursParams) -> None:
    num_ranges, num_lists = params.route_ranges, view.snapshot.existing(IndexEntry, space).lists
    if num_ranges == 0:
        return
    wrong = f"--route-ranges {num_ranges}"
    if num_ranges < 2:
        raise UsageError(wrong, remedy="Give at least 2 ranges of lists, or 0 for no routing.")
    if params.exact:
        raise UsageError(f"{wrong} with --exact, which reads all lists", remedy="Remove one of the two.")
    if num_lists < num_ranges:
        held = "1 list, which cannot be split" if num_lists == 1 else f"only {num_lists:,} lists"
        remedy = "Leave it out." if num_lists == 1 else f"Give at most {num_lists}."
        raise UsageError(f"{wrong}, but the index of space '{space}' has {held}", remedy=remedy)
