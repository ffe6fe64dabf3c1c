"""The last tasks of a join that is split by ranges: what the ranges found becomes neighbours, and the rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from retrodb.ann.codebook import Codebook
from retrodb.ann.codegen.insertion import insert_candidates
from retrodb.ann.join import RERANK_MARGIN, mark_capped
from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.ann.rerank import gather, rerank_by_id
from retrodb.ann.routing import lists_at_most
from retrodb.ann.topk import TopK, empty_topk
from retrodb.engine.task import NoResult, Task, TaskRecord
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.format.rows import RowSet
from retrodb.stages.file_list import read_file_list
from retrodb.stages.neighbours.exchange import (
    ExchangeWriter,
    fixed_lists,
    fixed_rows,
    publish_exchange,
    ragged_rows,
    read_exchange,
)
from retrodb.stages.neighbours.join_memory import SORTED_ROWS
from retrodb.stages.neighbours.query_rows import QueryRows
from retrodb.stages.neighbours.range_payloads import (
    CollectPayload,
    RangeJoin,
    TableRowsPayload,
    joined_codebook,
    nearest_schema,
    routed_rows,
)
from retrodb.stages.neighbours.table_rows import TableRows, num_short, publish_row_blocks, query_rows, spans_of
from retrodb.stages.planned_view import planned_view
from retrodb.store.storage import Storage
from retrodb.view.view import View

_FOUND_COLUMNS = ("ids", "distances")


def run_collect_task(
    storage: Storage, task: Task[CollectPayload, NoResult], clock: str, *, threads: int
) -> TaskRecord[NoResult]:
    """Leave the neighbours of the rows of a home range for their spans, and the rows that found too few of them."""
    del clock
    payload, join = task.payload, task.payload.join
    inputs, codebook = join.inputs, joined_codebook(storage, join)
    view = planned_view(storage, inputs.snapshot)
    starts = np.array([span.first_chunk for span in spans_of(view, inputs.queries)], dtype=np.int64)
    width, most = join.width + RERANK_MARGIN, lists_at_most(payload.probes.most_lists, codebook.num_findable)
    nearest = _Cursor(read_exchange(storage, payload.nearest, 0))
    found = [_Cursor(read_exchange(storage, file, payload.number)) for file in read_file_list(storage, payload.remote)]
    counts = {"starved": 0}

    def produce(writers: list[ExchangeWriter]) -> None:
        results, starved = writers
        first = 0
        for rows in routed_rows(storage, payload.routed, payload.number, codebook.dim):
            table = nearest.take(len(rows))
            ids, distances = (fixed_rows(table.column(name), width).copy() for name in _FOUND_COLUMNS)
            for cursor in found:
                for piece in cursor.below(first + len(rows)):
                    _insert(piece, first, (ids, distances))
            first += len(rows)
            is_short = (ids != NO_NEIGHBOUR).sum(axis=1) < payload.wanted
            is_starved = is_short & payload.probes.are_partial(rows.lists_QA, most)
            is_capped = is_short & (most < codebook.num_findable)
            starved.add(0, pa.table({"row": rows.numbers_Q[is_starved]}))
            counts["starved"] += int(is_starved.sum())
            _add_results(
                results,
                view,
                codebook,
                join,
                rows.take(np.flatnonzero(~is_starved)),
                ids[~is_starved],
                is_capped[~is_starved],
                starts,
                threads,
            )

    schemas = [_result_schema(join.width), pa.schema([("row", pa.int64())])]
    files = publish_exchange(storage, join.run, [f"result/{task.id}", f"starved/{task.id}"], schemas, produce)
    return TaskRecord(task.id, tuple(files), counts=counts)


def _add_results(
    results: ExchangeWriter,
    view: View,
    codebook: Codebook,
    join: RangeJoin,
    rows: QueryRows,
    candidates: Int64Array,
    is_capped: BoolArray,
    starts: Int64Array,
    threads: int,
) -> None:
    """The neighbours of some rows among their candidates (Q, W) by exact distances, for the spans of the rows.

    Args:
        is_capped: (Q,) rows that found too few, and have not read all lists.
    """
    queries = gather(rows.vectors_QD, np.arange(len(rows)), codebook.dim, "queries")
    fetch = partial(view.vectors, join.inputs.space)
    ids, distances = rerank_by_id(queries, candidates, fetch, join.width, codebook.metric, threads)
    mark_capped((ids, distances), is_capped)
    spans = np.searchsorted(starts, rows.numbers_Q, side="right") - 1
    for span in np.unique(spans).tolist():
        of_span = spans == span
        columns = [pa.array(rows.numbers_Q[of_span]), fixed_lists(ids[of_span]), fixed_lists(distances[of_span])]
        results.add(span, pa.Table.from_arrays(columns, schema=_result_schema(join.width)))


def run_rows_task(storage: Storage, task: Task[TableRowsPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Write the rows of a span, ascending. Publishes no file when it has none."""
    del clock
    payload, join = task.payload, task.payload.join
    inputs, view = join.inputs, planned_view(storage, join.inputs.snapshot)
    span = spans_of(view, inputs.queries)[payload.span]
    rows = RowSet.from_rows(query_rows(view, inputs.queries, inputs.space, span), span.num_chunks)
    counts = {"rows": len(rows)} | num_short(empty_topk(0, join.width), inputs.params.k)
    if not len(rows):
        return TaskRecord(task.id, counts=counts)

    def blocks() -> Iterator[TableRows]:
        for first in range(span.first_chunk, span.end, SORTED_ROWS):
            block = _rows_between(storage, payload, first, first + SORTED_ROWS)
            for name, count in num_short((block.ids_QW, block.distances_QW), inputs.params.k).items():
                counts[name] += count
            yield block

    files = publish_row_blocks(storage, inputs.table, task.id, span, rows, join.width, blocks())
    return TaskRecord(task.id, files, counts=counts)


def _rows_between(storage: Storage, payload: TableRowsPayload, first: int, end: int) -> TableRows:
    """The rows of a span with numbers from `first` up to `end`, ascending."""
    width = payload.join.width
    tables = [_result_schema(width).empty_table()]
    for file in read_file_list(storage, payload.results):
        for table in read_exchange(storage, file, payload.span):
            rows = table.column("row").to_numpy()
            tables.append(table.filter(pa.array((rows >= first) & (rows < end))))
    table = pa.concat_tables(tables)
    rows = table.column("row").to_numpy()
    order = np.argsort(rows, kind="stable")
    ids, distances = (fixed_rows(table.column(name), width)[order] for name in _FOUND_COLUMNS)
    return TableRows(rows[order], ids, distances)


def _result_schema(width: int) -> pa.Schema:
    return pa.schema([("row", pa.int64()), *nearest_schema(width)])


def _insert(piece: pa.Table, first: int, best: TopK) -> None:
    """Insert what a range found for rows of a block, whose first row has the position `first`, into their best."""
    values, offsets = ragged_rows(piece.column("ids"))
    distances = ragged_rows(piece.column("distances"))[0]
    rows, sizes = piece.column("position").to_numpy() - first, np.diff(offsets)
    slots = np.arange(sizes.max(initial=0))
    is_found: BoolArray = slots < sizes[:, None]
    ids_QW = np.full(is_found.shape, NO_NEIGHBOUR, dtype=np.int64)
    distances_QW = np.full(is_found.shape, np.inf, dtype=np.float32)
    ids_QW[is_found], distances_QW[is_found] = values, distances
    of_rows = best[0][rows], best[1][rows]
    insert_candidates((ids_QW, distances_QW), of_rows)
    best[0][rows], best[1][rows] = of_rows


class _Cursor:
    """Reads tables row by row, in their order."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables, self._rest = tables, None

    def take(self, count: int) -> pa.Table:
        """The next rows."""
        taken = []
        while count:
            rest = self._next()
            assert rest is not None, "as many rows were left as were routed"
            taken.append(rest.slice(0, count))
            self._rest = rest.slice(count) if count < rest.num_rows else None
            count -= taken[-1].num_rows
        return pa.concat_tables(taken)

    def below(self, end: int) -> Iterator[pa.Table]:
        """The next rows whose position is smaller."""
        while (rest := self._next()) is not None:
            positions: AnyArray = rest.column("position").to_numpy()
            count = int(np.searchsorted(positions, end))
            if count:
                yield rest.slice(0, count)
            self._rest = rest.slice(count) if count < rest.num_rows else None
            if self._rest is not None:
                return

    def _next(self) -> pa.Table | None:
        if self._rest is None:
            self._rest = next(self._tables, None)
        return self._rest
