"""A table whose rows are made when somebody asks for some of its columns: DuckDB takes it for a dataset of Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds

if TYPE_CHECKING:
    import pyarrow.compute as pc

ReadBatches: TypeAlias = "Callable[[pa.Schema, pc.Expression | None], Iterator[pa.RecordBatch]]"
"""Reads the columns of a schema, of the rows that a condition chooses; None chooses all."""


class LazyTable(ds.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset without rows of its own."""

    def __init__(self, schema: pa.Schema, read: ReadBatches) -> None:
        """
        Args:
            schema: of all columns. To count rows, DuckDB reads the first one.
        """
        super().__init__(schema.empty_table())
        self._read = read

    def scanner(self, *, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> BatchStream:
        """What DuckDB calls: a stream of some columns, or all, of the rows that a condition chooses."""
        schema = pa.schema([self.schema.field(name) for name in columns or self.schema.names])
        return BatchStream(schema, self._read(schema, filter))


@dataclass(frozen=True)
class BatchStream:
    """What DuckDB takes for the scanner of a dataset."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    def to_reader(self) -> pa.RecordBatchReader:
        """The stream, which is read once."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches)
