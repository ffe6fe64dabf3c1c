"""The tasks of a join that is split by ranges of lists, and what they leave for each other.

=======  ============================  =========================================================================================
task     of                            leaves
=======  ============================  =========================================================================================
route    a span of query rows          its rows, for the range that has the nearest list of each: its home range
home     a range, a group of spans     the nearest rows of this range; and the query row for every other range that it probes
remote   a range, a group of spans     the rows of this range that are nearer than what the home range found, for that range
collect  a range, a group of spans     for the query rows that are at home there, their neighbours by exact distances, by span
rows     a span of query rows          the file of the table
=======  ============================  =========================================================================================

The nearest W by (code distance, id) of all ranges are those of all lists, and exact distances are computed once, of these W. So
neither the number of ranges nor the order of tasks changes a byte of the table. Rows that find fewer than k neighbours go
through the same tasks again with more lists.

Legend: Q query rows, A lists of a row, W candidates of a row, R ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import pyarrow as pa

from retrodb.ann.codebook import Codebook
from retrodb.ann.routing import Probes
from retrodb.engine.task import NoResult, TaskKind
from retrodb.format.arrays import Int32Array, Int64Array
from retrodb.format.records import FileRecord
from retrodb.stages.file_list import read_file_list
from retrodb.stages.neighbours.compared_tasks import TableInputs
from retrodb.stages.neighbours.exchange import read_exchange
from retrodb.stages.neighbours.filled_lists import codebook_of_rows
from retrodb.stages.neighbours.join_memory import EXCHANGED_ROWS
from retrodb.stages.neighbours.query_rows import QueryRows, joined_tables
from retrodb.stages.neighbours.range_rows import ListRange
from retrodb.stages.planned_view import planned_view
from retrodb.store.storage import Storage


@dataclass(frozen=True)
class RangeJoin:
    """What the tasks of one join have in common."""

    run: str
    inputs: TableInputs
    bounds: tuple[int, ...]  # R + 1 lists: range r has the lists from bounds[r] up to bounds[r + 1]
    list_sizes: FileRecord | None  # of a restricted table, the chunks in each list

    def lists(self, number: int) -> ListRange:
        """The lists of a range."""
        return ListRange(self.bounds[number], self.bounds[number + 1])

    def ranges_of(self, lists: Int32Array) -> Int64Array:
        """The range of each list, -1 for -1."""
        return np.searchsorted(self.bounds, lists, side="right") - 1

    @property
    def num_ranges(self) -> int:
        """R."""
        return len(self.bounds) - 1

    @property
    def width(self) -> int:
        """Neighbours that a row keeps."""
        return self.inputs.params.k + self.inputs.params.spare_neighbours


@dataclass(frozen=True)
class RoutePayload:
    """Route the rows of a span, or those that found too few neighbours."""

    join: RangeJoin
    probes: Probes  # lists that each row reads
    span: int  # its number; -1 for the rows in the files
    starved: FileRecord | None  # list of the files with rows that found too few neighbours


@dataclass(frozen=True)
class HomePayload:
    """Join the rows of a group of spans that are at home in a range with this range."""

    join: RangeJoin
    number: int  # of the range
    routed: FileRecord  # list of the files of the group's spans


@dataclass(frozen=True)
class RemotePayload:
    """Join the rows that are at home in other ranges with a range."""

    join: RangeJoin
    number: int  # of the range
    sent: FileRecord  # list of the files of the home ranges, in their order


@dataclass(frozen=True)
class CollectPayload:
    """Find the neighbours of the rows that are at home in a range."""

    join: RangeJoin
    number: int  # of the range
    probes: Probes  # lists that each row read
    wanted: int  # neighbours that a row has to find, or probe more lists
    routed: FileRecord  # list of the files of the group's spans
    nearest: FileRecord  # what the home range found
    remote: FileRecord  # list of the files of all ranges


@dataclass(frozen=True)
class TableRowsPayload:
    """Write the rows of a span into the table."""

    join: RangeJoin
    span: int  # its number
    results: FileRecord  # list of the files of the group


ROUTE = TaskKind[RoutePayload, NoResult]("neighbours-route", 1, NoResult)
HOME = TaskKind[HomePayload, NoResult]("neighbours-home", 1, NoResult)
REMOTE = TaskKind[RemotePayload, NoResult]("neighbours-remote", 1, NoResult)
COLLECT = TaskKind[CollectPayload, NoResult]("neighbours-collect", 2, NoResult)
ROWS = TaskKind[TableRowsPayload, NoResult]("neighbours-rows", 3, NoResult)


def nearest_schema(width: int) -> pa.Schema:
    """Columns of rows and distances that were found for each query row."""
    return pa.schema([("ids", pa.list_(pa.int64(), width)), ("distances", pa.list_(pa.float32(), width))])


FOUND = pa.schema([
    ("position", pa.int64()), ("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32())),
])  # fmt: skip
"""Columns of what another range found: by the position of the row among those of its home range."""


@lru_cache(maxsize=1)
def joined_codebook(storage: Storage, join: RangeJoin) -> Codebook:
    """The codebook of a join, which finds the lists that its rows may read, opened once per process."""
    return codebook_of_rows(planned_view(storage, join.inputs.snapshot), join.inputs.space, join.list_sizes)


def routed_rows(storage: Storage, routed: FileRecord, number: int, dim: int) -> Iterator[QueryRows]:
    """The rows that are at home in a range, in blocks; their order is that of the files."""
    files = read_file_list(storage, routed)
    tables = chain.from_iterable(read_exchange(storage, file, number) for file in files)
    for table in joined_tables(tables, EXCHANGED_ROWS):
        yield QueryRows.of_table(table, dim)
