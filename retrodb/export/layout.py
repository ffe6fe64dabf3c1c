"""The place of every chunk in an export: given when it is first written, and the same for as long as it is refreshed.

Trainers find chunks by position, so a position may never come to mean another chunk. A layout is the chunks that were live
when the export was made, in the order of their ids; one that is deleted later keeps its place, as padding.

Chunks lie in *runs*: consecutive chunks of one document, all of them live at that time. Where a run ends there is no
continuation, though the next place holds another chunk.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.format.records import FileDigest, FileRecord
from retrodb.format.rows import RowSet, deserialize_rows, serialize_rows
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.coverage import Coverage

BLOCK_CHUNKS = 1 << 15
"""Chunks that are gathered at a time: what an export holds in memory is a few such blocks."""


@dataclass(frozen=True)
class Span:
    """The part of a layout that lies in one range of ids."""

    first: int  # place of its first chunk
    chunks: FileRecord  # the range, and which of its rows have a place
    starts: bytes  # bitmap of the positions in the span where a run begins

    def __len__(self) -> int:
        return self.chunks.num_rows

    @property
    def ids(self) -> Int64Array:
        """The ids in the order of their places."""
        return self.chunks.first_chunk + self.chunks.row_set.present

    @property
    def run_starts(self) -> Int64Array:
        """The positions in the span at which a run begins."""
        return deserialize_rows(self.starts)

    @property
    def run_sizes(self) -> Int64Array:
        """Chunks of each run."""
        return np.diff(np.append(self.run_starts, len(self)))

    def blocks_with_ends(self) -> Iterator[tuple[Int64Array, Int64Array]]:
        """The blocks of ids, each with the positions behind which a run ends: where `np.insert` puts one more row."""
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
    """The places 0, 1, ... of the chunks of a chunk set."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        self._coverage = Coverage([span.chunks for span in spans])
        self._first = {span.chunks.first_chunk: span.first for span in spans}

    @classmethod
    def of_live(cls, chunks: ChunkSet) -> ExportPositions:
        """All live chunks."""
        spans: list[Span] = []
        first = 0
        for record in chunks.ranges:
            rows = RowSet.from_mask(chunks.live_mask(record.first_chunk, record.num_chunks))
            if len(rows):
                spans.append(_span(first, record.first_chunk, rows, _run_starts(chunks, record, rows)))
                first += len(rows)
        return cls(spans)

    def __len__(self) -> int:
        return self.spans[-1].first + len(self.spans[-1]) if self.spans else 0

    @cached_property
    def num_runs(self) -> int:
        """Runs of all spans."""
        return sum(len(span.run_starts) for span in self.spans)

    @cached_property
    def digest(self) -> str:
        """Equal for equal layouts."""
        return identity(self.to_json())

    def places(self, ids: Int64Array) -> Int64Array:
        """The place of each id, whatever the shape; -1 for ids without one, and for -1."""
        flat = ids.ravel()
        places = np.full(len(flat), -1, dtype=np.int64)
        for hit in self._coverage.lookup(flat):
            places[hit.where] = self._first[hit.record.first_chunk] + hit.positions
        return places.reshape(ids.shape)

    def ids(self, start: int, stop: int) -> Int64Array:
        """The ids at the places from `start` up to `stop`."""
        parts = [np.empty(0, np.int64)]
        for span in self.spans:
            low, high = max(start - span.first, 0), min(stop - span.first, len(span))
            if low < high:
                parts.append(span.ids[low:high])
        return np.concatenate(parts)

    def runs_until(self, places: Int64Array) -> Int64Array:
        """How many runs begin at each place or before it; 0 for -1."""
        counts = np.zeros(places.shape, dtype=np.int64)
        before = 0
        for span in self.spans:
            starts = span.run_starts
            inside = (places >= span.first) & (places < span.first + len(span))
            counts[inside] = before + np.searchsorted(starts, places[inside] - span.first, side="right")
            before += len(starts)
        return counts

    def blocks(self) -> Iterator[Int64Array]:
        """All ids in their order, `BLOCK_CHUNKS` at a time."""
        return chain.from_iterable(span.blocks() for span in self.spans)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values that `from_json` reads."""
        return [
            {
                "first_chunk": span.chunks.first_chunk,
                "num_chunks": span.chunks.num_chunks,
                "rows": None if span.chunks.rows is None else base64.b64encode(span.chunks.rows).decode(),
                "starts": base64.b64encode(span.starts).decode(),
            }
            for span in self.spans
        ]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]]) -> ExportPositions:
        """The layout that `to_json` described."""
        spans: list[Span] = []
        first = 0
        for value in values:
            rows = RowSet(value["num_chunks"], None if value["rows"] is None else base64.b64decode(value["rows"]))
            spans.append(_span(first, value["first_chunk"], rows, base64.b64decode(value["starts"])))
            first += len(rows)
        return cls(spans)


def _span(first: int, first_chunk: int, rows: RowSet, starts: bytes) -> Span:
    record = FileRecord("", "", "", FileDigest(0, b"", b""), first_chunk, rows.num_rows_total, rows.bitmap, len(rows))
    return Span(first, record, starts)


def _run_starts(chunks: ChunkSet, record: FileRecord, rows: RowSet) -> bytes:
    ids = record.first_chunk + rows.present
    documents = chunks.document_ids(ids)
    goes_on = (np.diff(ids) == 1) & (np.diff(documents) == 0)
    return serialize_rows(np.flatnonzero(np.concatenate(([True], ~goes_on))))
