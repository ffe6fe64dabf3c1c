"""The position of every chunk in an export: assigned when it is first written, and the same as long as it is refreshed.

Trainers find chunks by position, so a position never comes to mean another chunk. Positions 0, 1, ... go to the chunks that are
live when the export is made, in the order of their ids. A chunk that is deleted later keeps its position, as padding.

Chunks form *runs*: consecutive chunks of one document, all of them live when the export was made. At the end of a run there is
no continuation, although the next position has another chunk.

The export's record has the counts of each range of ids, and the positions themselves are words in a file. So opening them costs
one small record per range, and a lookup reads one word per id.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import xxhash

from retrodb.errors import DamagedFileError
from retrodb.export.position_words import WORD, WORD_CHUNKS, bit_ranks, num_words, position_words, rows_of_bits
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet

BLOCK_CHUNKS = 1 << 15
"""Chunks that are gathered at a time: an export holds a few such blocks in memory."""
SEQUENCE_CHUNKS = 32
"""Chunks of a sequence of formats that cut runs into sequences: the 2,048 tokens of the paper."""


@dataclass(frozen=True)
class SpanRecord:
    """The counts of a `PositionSpan`, as the export's record has them."""

    first_chunk: int
    num_chunks: int  # of the range, with and without a position
    num_positions: int
    num_runs: int
    longest_run: int  # chunks
    num_sequences: int  # of `SEQUENCE_CHUNKS` chunks or fewer, into which its runs can be cut
    digest: str  # of its words


@dataclass(frozen=True)
class PositionSpan:
    """The positions that lie in one range of ids."""

    first: int  # position of its first chunk
    first_run: int  # runs of the spans before it
    first_sequence: int  # sequences of the spans before it
    record: SpanRecord
    words: AnyArray  # (W,) see `position_words.py`; may be memory-mapped

    def __len__(self) -> int:
        return self.record.num_positions

    @property
    def ids(self) -> Int64Array:
        """The ids in the order of their positions."""
        return self.record.first_chunk + rows_of_bits(self.words, "present")

    @property
    def run_starts(self) -> Int64Array:
        """The offsets in the span at which a run begins."""
        return rows_of_bits(self.words, "starts")

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
    """The positions of one chunk set in an export.

    Args:
        records: of the ranges of ids, ascending.
        words: of all ranges, one after the other; may be memory-mapped.
    """

    def __init__(self, records: Sequence[SpanRecord], words: AnyArray) -> None:
        self.records, self._words = list(records), words
        self._first_chunk, self._num_chunks = (
            np.array([getattr(record, name) for record in records], dtype=np.int64)
            for name in ("first_chunk", "num_chunks")
        )
        self._first, self._first_run, first_sequence, first_word = (
            _sums_before(counts)
            for counts in (
                [record.num_positions for record in records],
                [record.num_runs for record in records],
                [record.num_sequences for record in records],
                [num_words(record.num_chunks) for record in records],
            )
        )
        self._first_word = first_word
        self.num_sequences = int(first_sequence[-1])  # of all spans
        self._all = [
            PositionSpan(
                int(self._first[number]),
                int(self._first_run[number]),
                int(first_sequence[number]),
                record,
                words[first_word[number] : first_word[number + 1]],
            )
            for number, record in enumerate(records)
        ]

    @classmethod
    def empty(cls) -> ExportPositions:
        """No positions."""
        return cls([], np.empty(0, dtype=WORD))

    @classmethod
    def open(cls, path: Path, records: Sequence[SpanRecord]) -> ExportPositions:
        """The positions of a file of words, memory-mapped.

        Raises:
            DamagedFileError: when the file is missing or too short.
        """
        size = sum(num_words(record.num_chunks) for record in records)
        if size and (not path.is_file() or path.stat().st_size != size * WORD.itemsize):
            raise DamagedFileError("the positions of the export are damaged", where=str(path), remedy="Export again.")
        return cls(records, np.memmap(path, dtype=WORD, mode="r", shape=(size,)) if size else np.empty(0, dtype=WORD))

    @cached_property
    def spans(self) -> list[PositionSpan]:
        """The ranges that have a position, ascending."""
        return [span for span in self._all if len(span)]

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def num_runs(self) -> int:
        """Runs of all spans."""
        return int(self._first_run[-1])

    @property
    def longest_run(self) -> int:
        """Chunks of the longest run."""
        return max((record.longest_run for record in self.records), default=0)

    @cached_property
    def digest(self) -> str:
        """Equal for equal positions."""
        return identity(self.records)

    def positions(self, ids: Int64Array) -> Int64Array:
        """The position of each id, in the shape of `ids`; -1 for ids without one, and for -1."""
        flat = ids.ravel()
        positions = np.full(len(flat), -1, dtype=np.int64)
        number = np.searchsorted(self._first_chunk, flat, side="right") - 1
        row = flat - self._first_chunk[number] if len(self.records) else flat
        where = np.flatnonzero((number >= 0) & (row < self._num_chunks[number])) if len(self.records) else number[:0]
        number, row = number[where], row[where]
        is_present, rank = bit_ranks(
            self._words[self._first_word[number] + row // WORD_CHUNKS], "present", row % WORD_CHUNKS
        )
        positions[where[is_present]] = (self._first[number] + rank)[is_present]
        return positions.reshape(ids.shape)

    def ids(self, start: int, stop: int) -> Int64Array:
        """The ids at the positions from `start` up to `stop`."""
        parts = [np.empty(0, np.int64)]
        for span in self.spans[bisect_right(self.spans, start, key=lambda span: span.first + len(span)) :]:
            if span.first >= stop:
                break
            parts.append(span.ids[max(start - span.first, 0) : stop - span.first])
        return np.concatenate(parts)

    def runs_until(self, positions: Int64Array) -> Int64Array:
        """The number of runs that begin at each position or before it; 0 for -1."""
        flat = positions.ravel()
        counts = np.zeros(len(flat), dtype=np.int64)
        where = np.flatnonzero((flat >= 0) & (flat < len(self)))
        number = np.searchsorted(self._first, flat[where], side="right") - 1
        offset = flat[where] - self._first[number]
        is_start, rank = bit_ranks(
            self._words[self._first_word[number] + offset // WORD_CHUNKS], "starts", offset % WORD_CHUNKS
        )
        counts[where] = self._first_run[number] + rank + is_start
        return counts.reshape(positions.shape)

    def blocks(self) -> Iterator[Int64Array]:
        """All ids in the order of their positions, `BLOCK_CHUNKS` at a time."""
        return chain.from_iterable(span.blocks() for span in self.spans)


def _sums_before(counts: Sequence[int]) -> Int64Array:
    """(n + 1,) the sum of the counts before each, and the sum of all."""
    return np.array([0, *accumulate(counts)], dtype=np.int64)


def live_span(chunks: ChunkSet, first_chunk: int, num_chunks: int) -> tuple[SpanRecord, AnyArray]:
    """The positions of the chunks of a range that are live now: counts and words."""
    is_live = chunks.live_mask(first_chunk, num_chunks)
    ids = first_chunk + np.flatnonzero(is_live)
    is_continued = (np.diff(ids) == 1) & (np.diff(chunks.document_ids(ids)) == 0)
    starts = np.flatnonzero(np.concatenate(([True], ~is_continued))[: len(ids)])
    sizes = np.diff(np.append(starts, len(ids)))
    words = position_words(is_live, starts)
    record = SpanRecord(
        first_chunk=first_chunk,
        num_chunks=num_chunks,
        num_positions=len(ids),
        num_runs=len(starts),
        longest_run=int(sizes.max(initial=0)),
        num_sequences=int((-(-sizes // SEQUENCE_CHUNKS)).sum()),
        digest=xxhash.xxh3_128_hexdigest(words.tobytes()),
    )
    return record, words
