"""The position of every chunk in an export: assigned when it is first written, and the same as long as it is refreshed.

Trainers find chunks by position, so a position never comes to mean another chunk. Positions 0, 1, ... go to the chunks that are
live when the export is made, in the order of their ids. A chunk that is deleted later keeps its position, as padding.

Chunks form *runs*: consecutive chunks of one document, all of them live when the export was made. At the end of a run there is
no continuation, although the next position has another chunk.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.format.records import FileDigest, FileRecord
from retrodb.format.rows import RowSet, deserialize_rows, serialize_rows
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.coverage import Coverage

BLOCK_CHUNKS = 1 << 15
"""Chunks that are gathered at a time: an export holds a few such blocks in memory."""


@dataclass(frozen=True)
class SpanRecord:
    """A `PositionSpan` as it is stored."""

    first_chunk: int
    num_chunks: int  # of the range, with and without a position
    rows: str | None  # base64 of the bitmap of the chunks with a position; None when all have one
    starts: str  # base64 of the bitmap of the run starts


@dataclass(frozen=True)
class PositionSpan:
    """The positions that lie in one range of ids."""

    first: int  # position of its first chunk
    chunks: FileRecord  # the range, and which of its chunks have a position
    starts: bytes  # bitmap of the offsets in the span at which a run begins

    def __len__(self) -> int:
        return self.chunks.num_rows

    @property
    def ids(self) -> Int64Array:
        """The ids in the order of their positions."""
        return self.chunks.first_chunk + self.chunks.row_set.present

    @property
    def run_starts(self) -> Int64Array:
        """The offsets in the span at which a run begins."""
        return deserialize_rows(self.starts)

    @property
    def run_sizes(self) -> Int64Array:
        """Chunks of each run."""
        return np.diff(np.append(self.run_starts, len(self)))

    def blocks_with_ends(self) -> Iterator[tuple[Int64Array, Int64Array]]:
        """The blocks of ids, each with the offsets after which a run ends: where `np.insert` puts one more row."""
        ends = np.append(self.run_starts[1:], len(self))
        for number, ids in enumerate(self.blocks()):
            first = number * BLOCK_CHUNKS
            low, high = np.searchsorted(ends, [first + 1, first + len(ids) + 1])
            yield ids, ends[low:high] - first

    def blocks(self) -> Iterator[Int64Array]:
        """The ids, `BLOCK_CHUNKS` at a time."""
        ids = self.ids
        return (ids[start : start + BLOCK_CHUNKS] for start in range(0, len(ids), BLOCK_CHUNKS))


class ExportPositions:
    """The positions 0, 1, ... of the chunks of a chunk set."""

    def __init__(self, spans: Sequence[PositionSpan]) -> None:
        self.spans = tuple(spans)
        self._coverage = Coverage([span.chunks for span in spans])
        self._first = {span.chunks.first_chunk: span.first for span in spans}

    @classmethod
    def of_live(cls, chunks: ChunkSet) -> ExportPositions:
        """Positions for all live chunks."""
        spans: list[PositionSpan] = []
        first = 0
        for record in chunks.ranges:
            rows = RowSet.from_mask(chunks.live_mask(record.first_chunk, record.num_chunks))
            if len(rows):
                spans.append(_span(first, record.first_chunk, rows, _run_starts(chunks, record, rows)))
                first += len(rows)
        return cls(spans)

    @classmethod
    def from_records(cls, records: Sequence[SpanRecord]) -> ExportPositions:
        """The positions that `to_records` described."""
        spans: list[PositionSpan] = []
        first = 0
        for record in records:
            rows = RowSet(record.num_chunks, None if record.rows is None else base64.b64decode(record.rows))
            spans.append(_span(first, record.first_chunk, rows, base64.b64decode(record.starts)))
            first += len(rows)
        return cls(spans)

    def to_records(self) -> list[SpanRecord]:
        """The positions as they are stored."""
        return [
            SpanRecord(
                first_chunk=span.chunks.first_chunk,
                num_chunks=span.chunks.num_chunks,
                rows=None if span.chunks.rows is None else base64.b64encode(span.chunks.rows).decode(),
                starts=base64.b64encode(span.starts).decode(),
            )
            for span in self.spans
        ]

    def __len__(self) -> int:
        return self.spans[-1].first + len(self.spans[-1]) if self.spans else 0

    @cached_property
    def num_runs(self) -> int:
        """Runs of all spans."""
        return sum(len(span.run_starts) for span in self.spans)

    @cached_property
    def digest(self) -> str:
        """Equal for equal positions."""
        return identity(self.to_records())

    def positions(self, ids: Int64Array) -> Int64Array:
        """The position of each id, in the shape of `ids`; -1 for ids without one, and for -1."""
        flat = ids.ravel()
        positions = np.full(len(flat), -1, dtype=np.int64)
        for hit in self._coverage.lookup(flat):
            positions[hit.where] = self._first[hit.record.first_chunk] + hit.positions
        return positions.reshape(ids.shape)

    def ids(self, start: int, stop: int) -> Int64Array:
        """The ids at the positions from `start` up to `stop`."""
        parts = [np.empty(0, np.int64)]
        for span in self.spans:
            low, high = max(start - span.first, 0), min(stop - span.first, len(span))
            if low < high:
                parts.append(span.ids[low:high])
        return np.concatenate(parts)

    def runs_until(self, positions: Int64Array) -> Int64Array:
        """The number of runs that begin at each position or before it; 0 for -1."""
        counts = np.zeros(positions.shape, dtype=np.int64)
        before = 0
        for span in self.spans:
            starts = span.run_starts
            is_inside = (positions >= span.first) & (positions < span.first + len(span))
            counts[is_inside] = before + np.searchsorted(starts, positions[is_inside] - span.first, side="right")
            before += len(starts)
        return counts

    def blocks(self) -> Iterator[Int64Array]:
        """All ids in the order of their positions, `BLOCK_CHUNKS` at a time."""
        return chain.from_iterable(span.blocks() for span in self.spans)


def _span(first: int, first_chunk: int, rows: RowSet, starts: bytes) -> PositionSpan:
    record = FileRecord("", "", "", FileDigest(0, b"", b""), first_chunk, rows.num_rows_total, rows.bitmap, len(rows))
    return PositionSpan(first, record, starts)


def _run_starts(chunks: ChunkSet, record: FileRecord, rows: RowSet) -> bytes:
    ids = record.first_chunk + rows.present
    documents = chunks.document_ids(ids)
    is_continued = (np.diff(ids) == 1) & (np.diff(documents) == 0)
    return serialize_rows(np.flatnonzero(np.concatenate(([True], ~is_continued))))
