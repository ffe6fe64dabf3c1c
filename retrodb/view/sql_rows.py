"""Rows of files for DuckDB, which are read when a query asks for some of their columns.

Arrow has datasets of files, too. They take twice the time for a small file, do not say which file is damaged, and cannot
compute a column.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.lazy_table import LazyTable
from retrodb.format.parquet import read_checked_groups
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.store.verify import VerifiedFiles

if TYPE_CHECKING:
    import pyarrow.compute as pc

    from retrodb.format.arrays import BoolArray

J = TypeVar("J")
R = TypeVar("R")

_MOST_THREADS = 4  # that read ahead, each as much
_GROUPS_AT_ONCE = 4  # row groups that a thread reads at once: the texts of 16,384 chunks are 5 MB


@dataclass(frozen=True)
class LiveColumn:
    """How the column `live` of a table is computed."""

    columns: tuple[str, ...]  # of the files, that it is computed from
    are_live: Callable[[ChunkRange, pa.Table], BoolArray]  # the range of a file and some of its rows -> (rows,) bool


@dataclass(frozen=True)
class _RowGroups:
    """Consecutive row groups of one of the files."""

    file: int
    groups: range


class StoredRows:
    """The rows of files as one table: the first id and the shard of the file, `live`, and the columns of the file.

    A condition on the shard chooses files. No condition on another column may reach this table, so the views over it wrap each of
    the others in an expression.
    """

    def __init__(
        self,
        files: VerifiedFiles,
        records: Sequence[FileRecord],
        shards: Sequence[int],
        num_rows: Sequence[int],
        schema: pa.Schema,
        live: LiveColumn,
    ) -> None:
        """
        Args:
            shards: the shard of each file.
            num_rows: rows of each file.
            schema: of all files.
        """
        # The first column is the one that DuckDB reads to count rows: no page has to be read for it.
        added = [pa.field("base", pa.int64()), pa.field("shard", pa.int64()), pa.field("live", pa.bool_())]
        self.table = LazyTable(pa.schema([*added, *schema]), self._batches)
        self._files, self._records, self._num_rows = files, records, num_rows
        self._stored, self._live = schema, live
        self._constants = pa.table(
            {"base": [record.first_chunk for record in records], "shard": shards}, pa.schema(added[:2])
        )
        self.error: Exception | None = None  # that ended a query

    def _batches(self, schema: pa.Schema, condition: pc.Expression | None) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows of the files that a condition chooses, in order."""
        wanted = {*schema.names, *(self._live.columns if "live" in schema.names else ())}
        stored = [name for name in self._stored.names if name in wanted]
        try:
            read = partial(self._read, columns=stored)
            for part, rows in _in_order(read, self._parts(condition), min(pa.cpu_count(), _MOST_THREADS)):
                columns = [self._column(name, part.file, rows) for name in schema.names]
                yield from pa.table(columns, schema).to_batches()
        except Exception as error:
            self.error = error  # DuckDB raises an error of its own instead
            raise

    def _parts(self, condition: pc.Expression | None) -> Iterator[_RowGroups]:
        files = self._constants.append_column("file", pa.array(range(len(self._records)), pa.int64()))
        chosen = files if condition is None else files.filter(condition)
        numbers: list[int] = chosen.column("file").to_pylist()  # one for each shard: 15,000 at 1e10 chunks
        for file in numbers:
            num_groups = -(-self._num_rows[file] // ROW_GROUP_ROWS)
            for first in range(0, num_groups, _GROUPS_AT_ONCE):
                yield _RowGroups(file, range(first, min(first + _GROUPS_AT_ONCE, num_groups)))

    def _read(self, part: _RowGroups, columns: Sequence[str]) -> tuple[_RowGroups, pa.Table]:
        path = self._files.open(self._records[part.file])
        return part, read_checked_groups(path, self._stored, self._num_rows[part.file], part.groups, columns)

    def _column(self, name: str, file: int, rows: pa.Table) -> pa.Array | pa.ChunkedArray:
        """A column of some rows of a file."""
        if name == "live":
            return pa.array(self._live.are_live(self._records[file].span, rows))
        if name in self._constants.column_names:
            return pa.array(np.full(rows.num_rows, self._constants.column(name)[file].as_py(), dtype=np.int64))
        return rows.column(name)


def _in_order(do: Callable[[J], R], jobs: Iterable[J], num_threads: int) -> Iterator[R]:
    """The results of jobs in their order, done by threads that are at most one job ahead each."""
    if num_threads == 1:
        yield from map(do, jobs)
        return
    ahead = deque[Future[R]]()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for job in jobs:
                ahead.append(pool.submit(do, job))
                if len(ahead) > num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # also where a query needs no further row
            pool.shutdown(wait=False, cancel_futures=True)
