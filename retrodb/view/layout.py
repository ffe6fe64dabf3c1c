"""Where documents begin and end among the rows of a documents file, and what follows from it.

Legend: N rows of the range, M documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.schemas import ROLE_KEY, ROLE_TEXT, ROLE_VALUE

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import BoolArray, Int64Array

LAYOUT_COLUMNS = ("first_row", "num_chunks", "num_key_chunks", "num_tokens", "num_key_tokens")


@dataclass(frozen=True)
class DocumentLayout:
    """The documents of one file, ascending by first row; each array (M,) int64."""

    first_row: Int64Array
    num_chunks: Int64Array
    num_key_chunks: Int64Array  # 0 for documents that are not a key-value pair
    num_tokens: Int64Array
    num_key_tokens: Int64Array

    @staticmethod
    def from_table(table: pa.Table) -> DocumentLayout:
        """Read `LAYOUT_COLUMNS` of a documents table."""
        return DocumentLayout(*(table.column(name).to_numpy().astype(np.int64) for name in LAYOUT_COLUMNS))

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return sum(array.nbytes for array in vars(self).values())

    def document_of(self, rows: Int64Array) -> Int64Array:
        """Which document (0 .. M-1) each row belongs to; -1 for rows of none."""
        if not len(self.first_row):  # compaction dropped all documents
            return np.full(np.shape(rows), -1, dtype=np.int64)
        index = np.searchsorted(self.first_row, rows, side="right") - 1
        inside = (index >= 0) & (rows < self.first_row[index] + self.num_chunks[index])
        return np.where(inside, index, -1)

    def rows_of(self, first_rows: Int64Array) -> Int64Array:
        """All rows of the documents that begin at `first_rows`, ascending."""
        counts = self.num_chunks[np.searchsorted(self.first_row, first_rows)]
        starts = np.repeat(first_rows - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
        return starts + np.arange(int(counts.sum()), dtype=np.int64)

    def has_next(self, rows: Int64Array) -> BoolArray:
        """Whether the row after each row is of the same document."""
        document = self.document_of(rows)
        return (document >= 0) & (rows + 1 < self.first_row[document] + self.num_chunks[document])

    def role(self, rows: Int64Array) -> Int64Array:
        """Role of each row: text, key or value."""
        document = self.document_of(rows)
        num_key_chunks = self.num_key_chunks[document]
        is_key = rows - self.first_row[document] < num_key_chunks
        return np.where(num_key_chunks == 0, ROLE_TEXT, np.where(is_key, ROLE_KEY, ROLE_VALUE))

    def lengths(self, rows: Int64Array, chunk_tokens: int) -> Int64Array:
        """Number of tokens of each row's chunk."""
        document = self.document_of(rows)
        position = rows - self.first_row[document]
        in_value = (self.num_key_chunks[document] > 0) & (position >= self.num_key_chunks[document])
        in_key = (self.num_key_chunks[document] > 0) & ~in_value
        position = np.where(in_value, position - self.num_key_chunks[document], position)
        key_tokens = self.num_key_tokens[document]
        total = np.where(in_key, key_tokens, self.num_tokens[document] - key_tokens)
        return np.asarray(np.clip(total - position * chunk_tokens, 0, chunk_tokens), dtype=np.int64)

    def is_key(self, rows: Int64Array, chunk_tokens: int, min_key_tokens: int) -> BoolArray:
        """Which rows are embedded: text and key chunks, except short tails after a first chunk."""
        document = self.document_of(rows)
        is_first = rows == self.first_row[document]
        long_enough = self.lengths(rows, chunk_tokens) >= min_key_tokens
        mask: BoolArray = (document >= 0) & (self.role(rows) != ROLE_VALUE) & (is_first | long_enough)
        return mask
