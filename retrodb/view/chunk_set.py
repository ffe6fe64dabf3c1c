"""ChunkSet: documents cut into chunks, read by id. The database's own chunks are one, every query set is another.

Everything that returns chunks masks the deleted ones here, and -1 ("no chunk") is looked up here alone.

Legend: Q ids of a batch, m tokens of a chunk, M documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.parquet import read_row_groups, read_table
from retrodb.format.records import FileRecord
from retrodb.format.rows import is_in, mask_of
from retrodb.format.settings import Settings
from retrodb.store.bounded_cache import CachedReader
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.tombstones import TombstoneSet

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from pyroaring import BitMap

    from retrodb.format.arrays import BoolArray, Int64Array, TokenArray


class DocumentRow(TypedDict):
    """A row of a documents file (schema `schemas.DOCUMENTS`), and the document's id."""

    first_chunk: int  # id of its first chunk, which identifies the document
    doc_id: str
    source: str
    content_hash: bytes
    first_row: int
    num_chunks: int
    num_key_chunks: int
    num_tokens: int
    num_key_tokens: int
    num_chars: int
    added_at: datetime
    metadata: str


@dataclass(frozen=True)
class ChunkTokens:
    """Tokens of a batch of chunks; a missing chunk (-1, or deleted) is a row of padding with length 0."""

    tokens: TokenArray  # (Q, m)
    lengths: Int64Array  # (Q,)


class _CoverageByKind(dict[str, Coverage]):
    """The files of each kind, whose records are made when they are first asked for: there may be thousands."""

    def __init__(self, files: VerifiedFiles, records_of: Callable[[str], Sequence[FileRecord]]) -> None:
        super().__init__()
        self._files, self._records_of = files, records_of

    def __missing__(self, kind: str) -> Coverage:
        return self.setdefault(kind, Coverage(self._records_of(kind), self._files))


class ChunkSet:
    """Chunks with ids, in files of three kinds (documents, chunks, tokens) that cover the same ranges."""

    def __init__(
        self,
        files: VerifiedFiles,
        settings: Settings,
        records_of: Callable[[str], Sequence[FileRecord]],
        tombstones: TombstoneSet,
    ) -> None:
        """
        Args:
            records_of: a kind of files -> their records; asked once for each kind that is needed.
        """
        self.files, self.settings, self.tombstones = files, settings, tombstones
        self._coverage = _CoverageByKind(files, records_of)
        self.layout = CachedReader(self._read_layout, lambda layout: layout.nbytes)
        self.documents_table = CachedReader(self._read_documents, lambda table: table.get_total_buffer_size())
        self.deleted_mask = CachedReader(self._read_deleted_mask, lambda mask: mask.nbytes)
        self._maps: dict[str, VerifiedArray] = {}

    @property
    def ranges(self) -> list[FileRecord]:
        """The documents files, by ascending first id: each is one range of ids."""
        return self._coverage["documents"].records

    @property
    def end(self) -> int:
        """One past the largest id; 0 for an empty set."""
        return self.ranges[-1].span.end if self.ranges else 0

    def split(self, ids: Int64Array) -> Iterator[tuple[FileRecord, Int64Array]]:
        """The ranges that ascending ids fall into, each with their rows in it."""
        for record in self.ranges:
            low, high = np.searchsorted(ids, [record.first_chunk, record.span.end])
            if low < high:
                yield record, ids[low:high] - record.first_chunk

    def is_live(self, ids: Int64Array) -> BoolArray:
        """(Q,) bool: which ids name a chunk that exists and is not deleted."""
        live = np.zeros(len(ids), dtype=bool)
        for hit in self._coverage["documents"].lookup(ids):
            deleted = self.tombstones.deleted_rows(*hit.record.span)
            live[hit.where] = ~is_in(deleted, hit.rows, hit.record.num_chunks)
        return live

    def present_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids from `first` on the files hold, deleted or not; compaction has dropped the others."""
        return self._coverage["documents"].covered_mask(first, count)

    def present_rows(self, first: int, count: int) -> BitMap:
        """`present_mask` as a bitmap of rows, relative to `first`."""
        return self._coverage["documents"].covered_rows(first, count)

    def live_rows(self, first: int, count: int) -> BitMap:
        """`live_mask` as a bitmap of rows, relative to `first`."""
        return self.present_rows(first, count) - self.tombstones.deleted_rows(first, count)

    def live_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids from `first` on are live."""
        return mask_of(self.live_rows(first, count), count)

    def is_all_live(self, first: int, count: int) -> bool:
        """Whether the records alone show that every id of the range is live; False says nothing."""
        records = self._coverage["documents"].overlapping(first, count)
        num_held = sum(min(r.span.end, first + count) - max(r.first_chunk, first) for r in records if r.rows is None)
        return num_held == count and not self.tombstones.touches(first, count)

    def key_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids get a vector: live, of role text or key, and no short tail."""
        ids = np.arange(first, first + count, dtype=np.int64)
        mask = np.zeros(count, dtype=bool)
        for hit in self._coverage["documents"].lookup(ids):
            layout = self.layout(hit.record)
            mask[hit.where] = layout.is_key(hit.rows, self.settings.chunk_tokens, self.settings.min_key_tokens)
        return mask & self.live_mask(first, count)

    def continuation(self, ids: Int64Array) -> Int64Array:
        """(Q,) int64: the id of the next chunk of the same document, -1 where there is none or it is deleted."""
        following = np.full(len(ids), -1, dtype=np.int64)
        for hit in self._coverage["documents"].lookup(ids):
            where = hit.where[self.layout(hit.record).has_next(hit.rows)]
            following[where] = ids[where] + 1
        return np.where(self.is_live(following), following, -1)

    def document_ids(self, ids: Int64Array) -> Int64Array:
        """(Q,) int64: the id of the first chunk of each chunk's document, which identifies the document; -1 for none."""
        documents = np.full(len(ids), -1, dtype=np.int64)
        for hit in self._coverage["documents"].lookup(ids):
            layout = self.layout(hit.record)
            index = layout.document_of(hit.rows)
            documents[hit.where] = np.where(index >= 0, layout.first_row[index] + hit.record.first_chunk, -1)
        return documents

    def document_bounds(self, ids: Int64Array) -> Int64Array:
        """(Q, 2) int64: the first id of each chunk's document and one past its last; twice -1 for none."""
        bounds = np.full((len(ids), 2), -1, dtype=np.int64)
        for hit in self._coverage["documents"].lookup(ids):
            layout = self.layout(hit.record)
            index = layout.document_of(hit.rows)
            first = layout.first_row[index] + hit.record.first_chunk
            both = np.stack([first, first + layout.num_chunks[index]], axis=1)
            bounds[hit.where] = np.where(index[:, None] >= 0, both, -1)
        return bounds

    def content_keys(self, ids: Int64Array) -> Int64Array:
        """(Q,) int64: equal for chunks of documents with equal text, independent of their ids; -1 for no document."""
        keys = np.full(len(ids), -1, dtype=np.int64)
        for hit in self._coverage["documents"].lookup(ids):
            index = self.layout(hit.record).document_of(hit.rows)
            hashes = self.documents_table(hit.record).column("content_hash").combine_chunks()
            of_document = np.frombuffer(hashes.buffers()[1], np.int64)[2 * hashes.offset :: 2]
            keys[hit.where] = np.where(index >= 0, of_document[index], -1)
        return keys

    def text_hashes(self, ids: Int64Array) -> NDArray[np.bytes_]:
        """(Q,) S16: the xxh3-128 of each chunk's text, deleted or not; it orders as big-endian numbers do."""
        hashes = np.zeros(len(ids), dtype="S16")
        for hit in self._coverage["hashes"].lookup(ids):
            hashes[hit.where] = np.ascontiguousarray(self.map(hit.record)[hit.positions]).view("S16")
        return hashes

    def lengths(self, ids: Int64Array) -> Int64Array:
        """(Q,) int64: tokens of each chunk, 0 for -1."""
        lengths = np.zeros(len(ids), dtype=np.int64)
        for hit in self._coverage["documents"].lookup(ids):
            lengths[hit.where] = self.layout(hit.record).lengths(hit.rows, self.settings.chunk_tokens)
        return lengths

    def gather_tokens(self, ids: Int64Array, *, deleted_too: bool = False) -> ChunkTokens:
        """The tokens of a batch of ids; -1 becomes padding, and so do deleted chunks unless `deleted_too`."""
        if not deleted_too:
            ids = np.where(self.is_live(ids), ids, -1)
        shape = (len(ids), self.settings.chunk_tokens)
        tokens = np.full(shape, self.settings.pad_token, dtype=self.settings.token_dtype)
        for hit in self._coverage["tokens"].lookup(ids):
            tokens[hit.where] = self.map(hit.record)[hit.positions]
        return ChunkTokens(tokens, self.lengths(ids))

    def texts(self, ids: Int64Array, *, deleted_too: bool = False) -> list[str]:
        """The text of each chunk; "" for -1 and, unless `deleted_too`, for deleted chunks."""
        if not deleted_too:
            ids = np.where(self.is_live(ids), ids, -1)
        texts = [""] * len(ids)
        for hit in self._coverage["chunks"].lookup(ids):
            group_of = hit.positions // ROW_GROUP_ROWS
            groups = np.unique(group_of)
            table = read_row_groups(self.files.open(hit.record), groups.tolist(), ["text"])
            rows = np.searchsorted(groups, group_of) * ROW_GROUP_ROWS + hit.positions % ROW_GROUP_ROWS
            for where, text in zip(hit.where.tolist(), table.column("text").take(rows).to_pylist(), strict=True):
                texts[where] = text
        return texts

    def documents(self, ids: Int64Array) -> list[DocumentRow | None]:
        """The document of each chunk as a row of its file; None for -1.

        A chunk that compaction has dropped still has its document while other chunks of that document exist: documents are
        named by the id of their first chunk, also when that chunk is gone.
        """
        documents: list[DocumentRow | None] = [None] * len(ids)
        range_of = np.searchsorted([record.first_chunk for record in self.ranges], ids, side="right") - 1
        for number in np.unique(range_of[range_of >= 0]):
            record, where = self.ranges[number], np.flatnonzero(range_of == number)
            index = self.layout(record).document_of(ids[where] - record.first_chunk)
            where, index = where[index >= 0], index[index >= 0]
            rows = self.documents_table(record).take(index).to_pylist()
            for index_in_batch, row in zip(where.tolist(), rows, strict=True):
                documents[index_in_batch] = _document_row(row, record.first_chunk)
        return documents

    def file(self, kind: str, first: int, count: int) -> FileRecord:
        """The one file of a kind that covers a range."""
        [record] = self._coverage[kind].overlapping(first, count)
        return record

    def overlapping(self, kind: str, first: int, count: int) -> list[FileRecord]:
        """The files of a kind whose range overlaps another, by ascending first id."""
        return self._coverage[kind].overlapping(first, count)

    def map(self, record: FileRecord) -> VerifiedArray:
        """A live `.npy` file, memory-mapped; its rows are verified when they are read."""
        if record.path not in self._maps:
            self._maps[record.path] = self.files.array(record)
        return self._maps[record.path]

    def _read_documents(self, record: FileRecord) -> pa.Table:
        return read_table(self.files.open(record))

    def _read_layout(self, record: FileRecord) -> DocumentLayout:
        return DocumentLayout.from_table(read_table(self.files.open(record), LAYOUT_COLUMNS))

    def _read_deleted_mask(self, first: int, count: int) -> BoolArray:
        mask = self.tombstones.deleted_mask(first, count) | ~self.present_mask(first, count)
        mask.flags.writeable = False
        return mask


def _document_row(columns: DocumentRow, range_start: int) -> DocumentRow:
    """A row as the documents file has it, with the id of its document."""
    columns["first_chunk"] = range_start + columns["first_row"]
    return columns
