"""The first tasks of a join that is split by ranges: rows are routed, joined with their home range, and with the other ranges."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pyarrow as pa

from retrodb.ann.join import RERANK_MARGIN, ScannedDatabase, scan_lists_of
from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.ann.rerank import gather
from retrodb.ann.topk import TopK, empty_topk
from retrodb.engine.task import NoResult, Task, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.stages.file_list import read_file_list
from retrodb.stages.index.live_parts import key_kinds
from retrodb.stages.neighbours.block_join import JoinHardware, lists_of_rows
from retrodb.stages.neighbours.exchange import (
    ExchangeWriter,
    fixed_lists,
    publish_exchange,
    ragged_lists,
    read_exchange,
)
from retrodb.stages.neighbours.join_memory import EXCHANGED_ROWS
from retrodb.stages.neighbours.query_rows import QueryRows, joined_tables, schema_of
from retrodb.stages.neighbours.range_payloads import (
    FOUND,
    HomePayload,
    RangeJoin,
    RemotePayload,
    RoutePayload,
    joined_codebook,
    nearest_schema,
    routed_rows,
)
from retrodb.stages.neighbours.range_rows import planned_rows_in_lists
from retrodb.stages.neighbours.table_inputs import exclusion_of
from retrodb.stages.neighbours.table_rows import query_ids, spans_of
from retrodb.stages.planned_view import planned_view
from retrodb.store.storage import Storage
from retrodb.view.view import View

_LIMITS = ("limit_id", "limit_distance")
_HOME = "home"  # column with the home range of a row


def run_route_task(
    storage: Storage, task: Task[RoutePayload, NoResult], clock: str, *, threads: int = 1
) -> TaskRecord[NoResult]:
    """Leave each row for the range that has its nearest list."""
    del clock
    payload, join = task.payload, task.payload.join
    inputs = join.inputs
    view, codebook = planned_view(storage, inputs.snapshot), joined_codebook(storage, join)
    num_rows = 0

    def produce(writers: list[ExchangeWriter]) -> None:
        nonlocal num_rows
        for ids in _rows_to_route(storage, view, payload):
            lists = lists_of_rows(view, inputs.space, inputs.queries, ids, codebook, payload.probes, threads)
            vectors = view.vectors(inputs.space, ids, inputs.queries)
            rows = QueryRows(ids, vectors, lists, exclusion_of(view, inputs.queries, inputs.params, ids))
            order = np.argsort(lists[:, 0], kind="stable")
            bounds = np.searchsorted(join.ranges_of(lists[order, 0]), np.arange(join.num_ranges + 1))
            for number in range(join.num_ranges):
                writers[0].add(number, rows.take(order[bounds[number] : bounds[number + 1]]).to_table())
            num_rows += len(ids)

    schema = schema_of(codebook.dim, key_kinds(inputs.params.exclude))
    files = publish_exchange(storage, join.run, [f"route/{task.id}"], [schema], produce)
    return TaskRecord(task.id, tuple(files), counts={"routed": num_rows})


def _rows_to_route(storage: Storage, view: View, payload: RoutePayload) -> Iterator[Int64Array]:
    inputs = payload.join.inputs
    if payload.starved is None:
        ids = query_ids(view, inputs.queries, inputs.space, spans_of(view, inputs.queries)[payload.span])
        for start in range(0, len(ids), EXCHANGED_ROWS):
            yield ids[start : start + EXCHANGED_ROWS]
        return
    files = read_file_list(storage, payload.starved)
    for table in joined_tables(chain.from_iterable(read_exchange(storage, file, 0) for file in files), EXCHANGED_ROWS):
        yield table.column("row").to_numpy()


def run_home_task(
    storage: Storage, task: Task[HomePayload, NoResult], clock: str, *, hardware: JoinHardware
) -> TaskRecord[NoResult]:
    """Leave the nearest rows of the home range, and the rows themselves for the other ranges that they probe."""
    del clock
    payload, join = task.payload, task.payload.join
    width, dim = join.width + RERANK_MARGIN, joined_codebook(storage, join).dim
    database = _database(storage, join, payload.number)
    counts = {"rows": 0, "sent": 0}

    def produce(writers: list[ExchangeWriter]) -> None:
        nearest, sent = writers
        for rows in routed_rows(storage, payload.routed, payload.number, dim):
            best = _scan(rows, database, empty_topk(len(rows), width), hardware)
            nearest.add(0, pa.Table.from_arrays([fixed_lists(array) for array in best], schema=nearest_schema(width)))
            positions = counts["rows"] + np.arange(len(rows))
            ranges = join.ranges_of(rows.lists_QA)
            for number in range(join.num_ranges):
                where = np.flatnonzero((ranges == number).any(axis=1)) if number != payload.number else positions[:0]
                if len(where):
                    lists = join.lists(number)
                    others = QueryRows(positions, rows.vectors_QD, rows.lists_QA, rows.exclusion).take(where)
                    limits = [pa.array(array[where, -1]) for array in best]
                    sent.add(number, _with_limits(others.within(lists.first, lists.end).to_table(), limits))
            counts["rows"] += len(rows)
        counts["sent"] = sent.num_rows

    schemas = [nearest_schema(width), _sent_schema(_query_schema(storage, join))]
    names = [f"nearest/{task.id}", f"sent/{task.id}"]
    files = publish_exchange(storage, join.run, names, schemas, produce)
    counts["allowed"] = database.num_allowed
    return TaskRecord(task.id, tuple(files), counts=counts)


def run_remote_task(
    storage: Storage, task: Task[RemotePayload, NoResult], clock: str, *, hardware: JoinHardware
) -> TaskRecord[NoResult]:
    """Leave the rows of a range that are nearer than the limit of a query row, for its home range."""
    del clock
    payload, join = task.payload, task.payload.join
    width, dim = join.width + RERANK_MARGIN, joined_codebook(storage, join).dim
    database = _database(storage, join, payload.number)

    def produce(writers: list[ExchangeWriter]) -> None:
        for table in joined_tables(_sent_rows(storage, payload), EXCHANGED_ROWS):
            rows, homes = QueryRows.of_table(table, dim), table.column(_HOME).to_numpy()
            limits = [table.column(name).to_numpy()[:, None] for name in _LIMITS]
            limit = limits[0].repeat(width, axis=1), limits[1].repeat(width, axis=1)
            ids, distances = _scan(rows, database, limit, hardware)
            is_nearer = (ids != limits[0]) & (ids != NO_NEIGHBOUR)
            for home in np.unique(homes).tolist():
                where = np.flatnonzero(is_nearer.any(axis=1) & (homes == home))
                offsets = np.concatenate([[0], np.cumsum(is_nearer[where].sum(axis=1))]).astype(np.int64)
                columns = [
                    pa.array(rows.numbers_Q[where]),
                    ragged_lists(ids[where][is_nearer[where]], offsets),
                    ragged_lists(distances[where][is_nearer[where]], offsets),
                ]
                writers[0].add(home, pa.Table.from_arrays(columns, schema=FOUND))

    return TaskRecord(task.id, tuple(publish_exchange(storage, join.run, [f"found/{task.id}"], [FOUND], produce)))


def _sent_rows(storage: Storage, payload: RemotePayload) -> Iterator[pa.Table]:
    """The rows that the home ranges sent to a range, by home range and position."""
    for home, file in enumerate(read_file_list(storage, payload.sent)):
        for table in read_exchange(storage, file, payload.number):
            yield table.append_column(_HOME, pa.array(np.full(table.num_rows, home, dtype=np.int32)))


def _sent_schema(rows: pa.Schema) -> pa.Schema:
    return rows.append(pa.field(_LIMITS[0], pa.int64())).append(pa.field(_LIMITS[1], pa.float32()))


def _query_schema(storage: Storage, join: RangeJoin) -> pa.Schema:
    return schema_of(joined_codebook(storage, join).dim, key_kinds(join.inputs.params.exclude))


def _with_limits(table: pa.Table, limits: list[pa.Array]) -> pa.Table:
    for name, column in zip(_LIMITS, limits, strict=True):
        table = table.append_column(name, column)
    return table


def _database(storage: Storage, join: RangeJoin, number: int) -> ScannedDatabase:
    """The rows of a range."""
    inputs, lists = join.inputs, join.lists(number)
    parts = planned_rows_in_lists(storage, inputs.snapshot, inputs.space, inputs.params, lists)
    return ScannedDatabase.of(parts, joined_codebook(storage, join), lists.count, lists.first)


def _scan(rows: QueryRows, database: ScannedDatabase, best: TopK, hardware: JoinHardware) -> TopK:
    """The nearest of each row in the lists that the database has, and of `best`; rows near each other are scanned together."""
    by_list = np.argsort(rows.lists_QA[:, 0], kind="stable")
    sorted_rows = rows.take(by_list)
    queries = gather(sorted_rows.vectors_QD, np.arange(len(rows)), len(database.space.centre_D), "queries")
    begun = best[0][by_list], best[1][by_list]
    found = scan_lists_of(
        queries, sorted_rows.lists_QA, database, sorted_rows.exclusion, begun, hardware.threads, hardware.device
    )
    best[0][by_list], best[1][by_list] = found
    return best
