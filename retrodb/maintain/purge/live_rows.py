"""Which rows of a file belong to live documents: a proof must not report these as remaining traces.

Rows of the database and of its held-out documents have owners. All other files in the folder have none: files of older snapshots,
orphaned files, runs, test sets, other query sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.records import FileRecord
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import View

_OF_CHUNKS = ("chunks", "tokens", "hashes", "vectors")


@dataclass(frozen=True)
class RowOwnership:
    """The owners of the N rows of a file."""

    is_live: BoolArray | None = None  # (N,) whether the row belongs to a live document; None when no row does
    documents: Int64Array | None = None  # (N,) id of the first chunk of its document; None where rows are no chunks

    def live(self, rows: Int64Array) -> BoolArray:
        """(n,) bool: which of these rows belong to a live document."""
        return np.zeros(len(rows), dtype=bool) if self.is_live is None else self.is_live[rows]


UNOWNED = RowOwnership()
"""Of a file without rows of live documents."""


class LiveRows:
    """The owners of the rows of every file in a database's folder."""

    def __init__(self, view: View) -> None:
        self._view = view

    @cached_property
    def _records(self) -> dict[str, FileRecord]:
        return {record.path: record for record in self._view.manifest.all_files()}

    def of(self, path: str, xxh3: str, num_rows: int) -> RowOwnership:
        """The owners of the rows of a file.

        A file that the snapshot does not name has no owner, and neither has one whose bytes are not those that it promises.

        Args:
            xxh3: digest of the file's bytes, hexadecimal.
            num_rows: that the file holds.
        """
        record = self._records.get(path)
        if record is None or record.digest.xxh3.hex() != xxh3:
            return UNOWNED
        owners = self._of_record(record)
        return owners if owners.is_live is None or len(owners.is_live) == num_rows else UNOWNED

    def _of_record(self, record: FileRecord) -> RowOwnership:
        kind, chunks = self._content(record)
        if chunks is None:
            return UNOWNED
        ids = record.first_chunk + self._view.files.rows(record).present
        if kind == "documents":
            return _document_owners(chunks, record)
        if kind == "parts":  # the codes lie in the order of the lists
            if not record.path.endswith(("/codes.npy", "/index.faiss")):
                return UNOWNED
            order = self._records[f"{record.path.rpartition('/')[0]}/order.npy"]
            ids = ids[self._view.files.array(order).whole()]
        elif kind not in _OF_CHUNKS:
            return UNOWNED
        return RowOwnership(chunks.is_live(ids), chunks.document_ids(ids) if kind == "chunks" else None)

    def _content(self, record: FileRecord) -> tuple[str, ChunkSet | None]:
        """The content of a file, and the chunks that its rows belong to."""
        if record.kind == "queries":
            held_out = self._view.query_set(record.name) if record.name == HELD_OUT_SET else None
            return record.path.rpartition("/")[2].partition(".")[0], held_out
        return record.kind, self._view.chunks


def _document_owners(chunks: ChunkSet, record: FileRecord) -> RowOwnership:
    layout = chunks.layout(record)
    num_live = np.concatenate(([0], np.cumsum(chunks.live_mask(*record.span))))
    return RowOwnership(num_live[layout.first_row + layout.num_chunks] > num_live[layout.first_row])
