"""Which rows of a file belong to live documents: a proof must not report these as remaining traces.

Rows of the database and of its held-out documents have owners. All other files in the folder have none: files of older snapshots,
orphaned files, runs, test sets, other query sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from retrodb.ann.part import open_part
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.part_files import CODES_FILE, SEARCH_CODES_FILE
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import View

_OF_CHUNKS = ("chunks", "tokens", "hashes", "vectors")


@dataclass(frozen=True)
class RowOwnership:
    """The owners of the rows of a file: functions of some rows (n,)."""

    live: Callable[[Int64Array], BoolArray]  # which of them belong to a live document
    documents: Callable[[Int64Array], Int64Array] | None = (
        None  # id of the first chunk of each; None: rows are no chunks
    )


UNOWNED = RowOwnership(lambda rows: np.zeros(len(rows), dtype=bool))
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
        return self._of_record(record, num_rows)

    def _of_record(self, record: FileRecord, num_rows: int) -> RowOwnership:
        kind, chunks = self._content(record)
        if chunks is None:
            return UNOWNED
        if kind == "documents":
            is_live = _live_documents(chunks, record)
            return RowOwnership(is_live.__getitem__) if len(is_live) == num_rows else UNOWNED
        rows = self._view.files.rows(record)
        if kind == "parts":
            return self._of_part(record, rows, num_rows)
        if len(rows) != num_rows:
            return UNOWNED
        if kind not in _OF_CHUNKS:
            return UNOWNED

        def live(positions: Int64Array) -> BoolArray:
            return chunks.is_live(record.first_chunk + rows.select(positions))

        def documents(positions: Int64Array) -> Int64Array:
            return chunks.document_ids(record.first_chunk + rows.select(positions))

        return RowOwnership(live, documents if kind == "chunks" else None)

    def _of_part(self, record: FileRecord, rows: RowSet, num_rows: int) -> RowOwnership:
        """The owners of codes, which are in the order of the lists."""
        folder, _, name = record.path.rpartition("/")
        part = open_part(Path(folder), lambda name: self._view.files.bytes(self._records[f"{folder}/{name}"]))
        if name == CODES_FILE and len(rows) == num_rows:
            is_packed = False
        elif name == SEARCH_CODES_FILE and part.search_codes.num_slots == num_rows:
            is_packed = True
        else:
            return UNOWNED

        def live(slots: Int64Array) -> BoolArray:
            positions = part.search_codes.positions_of(slots) if is_packed else slots
            return self._view.chunks.is_live(record.first_chunk + rows.select(part.order_N[positions]))

        return RowOwnership(live)

    def _content(self, record: FileRecord) -> tuple[str, ChunkSet | None]:
        """The content of a file, and the chunks that its rows belong to."""
        if record.kind == "queries":
            held_out = self._view.query_set(record.name) if record.name == HELD_OUT_SET else None
            return record.path.rpartition("/")[2].partition(".")[0], held_out
        return record.kind, self._view.chunks


def _live_documents(chunks: ChunkSet, record: FileRecord) -> BoolArray:
    """(M,) bool: which documents of a file have a live chunk."""
    layout = chunks.layout(record)
    num_live = np.concatenate(([0], np.cumsum(chunks.live_mask(*record.span))))
    return np.asarray(num_live[layout.first_row + layout.num_chunks] > num_live[layout.first_row])
