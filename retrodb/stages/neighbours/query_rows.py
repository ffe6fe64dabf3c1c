"""Query rows on their way between the tasks of a join: vectors, lists to probe, and what they exclude."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retrodb.ann.exclusion import Exclusion, Intervals, Ragged
from retrodb.format.arrays import AnyArray, Int32Array, Int64Array, vectors_of
from retrodb.stages.neighbours.exchange import binary_rows, ragged_lists, ragged_rows


@dataclass(frozen=True)
class QueryRows:
    """Some rows of a query set that are joined together."""

    numbers_Q: Int64Array  # of the rows in the query set, or in the file of their home range
    vectors_QD: AnyArray  # float16
    lists_QA: Int32Array  # nearest first, -1 where a row has fewer
    exclusion: Exclusion

    def __len__(self) -> int:
        return len(self.numbers_Q)

    def take(self, rows: Int64Array) -> QueryRows:
        """Some of the rows."""
        return QueryRows(self.numbers_Q[rows], self.vectors_QD[rows], self.lists_QA[rows], self.exclusion.rows(rows))

    def within(self, first: int, end: int) -> QueryRows:
        """The same rows with the lists from `first` to `end` only, in their order."""
        is_inside = (self.lists_QA >= first) & (self.lists_QA < end)
        order = np.argsort(~is_inside, axis=1, kind="stable")[:, : int(is_inside.sum(axis=1).max(initial=0))]
        lists = np.where(is_inside, self.lists_QA, -1)
        return QueryRows(self.numbers_Q, self.vectors_QD, np.take_along_axis(lists, order, axis=1), self.exclusion)

    def to_table(self) -> pa.Table:
        """The rows as `schema_of` has them."""
        is_list = self.lists_QA >= 0
        exclusion = self.exclusion
        columns = [
            pa.array(self.numbers_Q),
            binary_rows(self.vectors_QD),
            ragged_lists(self.lists_QA[is_list], _offsets(is_list.sum(axis=1))),
            ragged_lists(exclusion.intervals.bounds_I2.ravel(), 2 * exclusion.intervals.offsets),
        ]
        for kind in range(len(exclusion.kinds)):
            offsets = exclusion.offsets_JQ1[kind]
            columns.append(ragged_lists(exclusion.keys_M[offsets[0] : offsets[-1]], offsets - offsets[0]))
        return pa.Table.from_arrays(columns, schema=schema_of(self.vectors_QD.shape[1], exclusion.kinds))

    @staticmethod
    def of_table(table: pa.Table, dim: int) -> QueryRows:
        """The rows of a table that `to_table` made."""
        lists, list_offsets = ragged_rows(table.column("lists"))
        bounds, bound_offsets = ragged_rows(table.column("bounds"))
        kinds = [name.removeprefix(_KEYS) for name in table.column_names if name.startswith(_KEYS)]
        keys = {kind: Ragged(*ragged_rows(table.column(_KEYS + kind))) for kind in kinds}
        return QueryRows(
            numbers_Q=table.column("row").to_numpy(),
            vectors_QD=vectors_of(table.column("vector").combine_chunks(), dim),
            lists_QA=_padded(lists, list_offsets),
            exclusion=Exclusion.of(
                table.num_rows, Intervals(bounds.reshape(-1, 2).astype(np.int64), bound_offsets // 2), **keys
            ),
        )


_KEYS = "keys_"


def schema_of(dim: int, kinds: Iterable[str]) -> pa.Schema:
    """Columns of query rows."""
    fields = [
        pa.field("row", pa.int64()),
        pa.field("vector", pa.binary(2 * dim)),
        pa.field("lists", pa.list_(pa.int32())),
        pa.field("bounds", pa.list_(pa.int64())),  # of excluded intervals of ids: first, end, first, end, ...
        *(pa.field(_KEYS + kind, pa.list_(pa.int64())) for kind in kinds),
    ]
    return pa.schema(fields)


def joined_tables(tables: Iterable[pa.Table], most_rows: int) -> Iterator[pa.Table]:
    """Tables put together, in their order, to blocks of at most so many rows, unless one table has more."""
    block: list[pa.Table] = []
    for table in tables:
        if block and sum(each.num_rows for each in block) + table.num_rows > most_rows:
            yield pa.concat_tables(block)
            block = []
        block.append(table)
    if block:
        yield pa.concat_tables(block)


def _offsets(sizes: Int64Array) -> Int64Array:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _padded(values: AnyArray, offsets: Int64Array) -> Int32Array:
    """(Q, most) int32: the values of each row, -1 where a row has fewer."""
    sizes = np.diff(offsets)
    positions = np.arange(sizes.max(initial=0))
    is_value = positions < sizes[:, None]
    padded = np.full(is_value.shape, -1, dtype=np.int32)
    padded[is_value] = values
    return padded
