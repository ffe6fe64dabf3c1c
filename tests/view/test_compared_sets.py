"""What a table was compared with, stored by ranges: any range of ids gives the rows that were put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from retrodb.format.records import ChunkRange
from retrodb.format.rows import MAX_ROWS
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedRange, ComparedSets, with_gaps, write_compared

FAR = 1 << 40  # ids beyond 32 bits

SPANS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=40)


def disjoint(pieces: list[tuple[int, int]], start: int = 0) -> list[ChunkRange]:
    """Ranges from gaps and lengths."""
    spans, end = [], start
    for gap, length in pieces:
        spans.append(ChunkRange(end + gap, length))
        end += gap + length
    return spans


def write(path: Path, ranges: list[tuple[str, ChunkRange, set[int]]]) -> Path:
    write_compared(path, (ComparedRange.of(side, span, BitMap(rows)) for side, span, rows in ranges))
    return path


@given(pieces=SPANS, first=st.integers(0, 100), count=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_rows_of_any_range_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]], first: int, count: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("sets")
    rng, spans, ids = np.random.default_rng(seed), disjoint(pieces, FAR), {DATABASE: set(), QUERIES: set()}
    files: list[list[tuple[str, ChunkRange, set[int]]]] = [[], []]
    for span in spans:
        for side in (DATABASE, QUERIES):
            rows = set(np.flatnonzero(rng.random(span.num_chunks) < 0.5).tolist())
            files[int(rng.integers(2))].append((side, span, rows))
            ids[side] |= {span.first_chunk + row for row in rows}
    sets = ComparedSets(write(folder / f"{number}.parquet", ranges) for number, ranges in enumerate(files))
    for side in (DATABASE, QUERIES):
        assert sets.ranges(side) == spans
        expected = {id_ - FAR - first for id_ in ids[side] if FAR + first <= id_ < FAR + first + count}
        assert set(sets.rows(side, FAR + first, count)) == expected


def test_a_table_without_files_was_compared_with_nothing() -> None:
    sets = ComparedSets([])
    assert not sets.ranges(DATABASE)
    assert not sets.rows(QUERIES, 0, MAX_ROWS)


def test_equal_sets_give_equal_bytes(tmp_path: Path) -> None:
    span = ChunkRange(7, 100_000)
    dense = BitMap(range(50_000))
    grown = BitMap()
    for row in range(50_000):
        grown.add(row)
    files = [tmp_path / "a", tmp_path / "b"]
    for path, rows in zip(files, (dense, grown), strict=True):
        write_compared(path, [ComparedRange.of(DATABASE, span, rows)])
    assert files[0].read_bytes() == files[1].read_bytes()


@given(SPANS, SPANS)
def test_ranges_with_gaps_have_every_id_of_both_once(now: list[tuple[int, int]], before: list[tuple[int, int]]) -> None:
    def ids(spans: list[ChunkRange]) -> list[int]:
        return [id_ for span in spans for id_ in range(span.first_chunk, span.end)]

    spans_now, spans_before = disjoint(now), disjoint(before, 3)
    spans = with_gaps(spans_now, spans_before)
    assert ids(spans) == sorted({*ids(spans_now), *ids(spans_before)})
    assert set(spans_now) <= set(spans)
