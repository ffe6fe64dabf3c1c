"""From ids to files: any packing of rows, overlaps, and ids beyond 2^33."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.format.records import FileDigest, FileRecord
from retrodb.format.rows import RowSet
from retrodb.store.row_files import store_rows
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage

NO_DIGEST = FileDigest(0, b"", b"")
STORAGE = LocalStorage(Path(tempfile.mkdtemp()))
STORED = VerifiedFiles(STORAGE)
FAR = 2**33
FILES = st.lists(st.tuples(st.integers(0, 30), st.lists(st.booleans(), min_size=1, max_size=20)), max_size=6)


def record(name: int, first: int, mask: list[bool]) -> FileRecord:
    rows = RowSet.from_mask(np.array(mask))
    return FileRecord("vectors", "", str(name), NO_DIGEST, first, len(mask), store_rows(STORAGE, rows), len(rows))


@settings(max_examples=200, deadline=None)
@given(FILES, st.booleans(), st.lists(st.integers(-3, 60), max_size=40))
def test_every_id_is_found_where_a_plain_loop_finds_it(
    files: list[tuple[int, list[bool]]], is_disjoint: bool, ids: list[int]
) -> None:
    if is_disjoint:
        files = [(20 * number, mask) for number, (_, mask) in enumerate(files)]
    records = [record(i, FAR + first, mask) for i, (first, mask) in enumerate(files)]
    order = sorted(range(len(records)), key=lambda i: (records[i].first_chunk, i))
    asked = np.array([FAR + i if i >= 0 else -1 for i in ids], dtype=np.int64)
    expected: dict[int, tuple[str, int]] = {}
    for place, own in enumerate(asked.tolist()):
        for index in order:
            first, mask = records[index].first_chunk, files[index][1]
            if first <= own < first + len(mask) and mask[own - first]:
                expected[place] = (records[index].path, sum(mask[: own - first]))
                break
    found = {}
    coverage = Coverage(records, STORED)
    for hit in coverage.lookup(asked):
        assert np.array_equal(hit.rows + hit.record.first_chunk, asked[hit.where])
        found.update({w: (hit.record.path, p) for w, p in zip(hit.where.tolist(), hit.positions.tolist(), strict=True)})
    assert found == expected
    if coverage.is_disjoint:
        assert {where: (file.path, position) for where, file, position in coverage.find_each(asked)} == expected
    else:
        with pytest.raises(ValueError, match="disjoint"):
            coverage.find_each(asked)


@settings(max_examples=100, deadline=None)
@given(FILES, st.integers(0, 30), st.integers(1, 40))
def test_covered_mask_is_the_union_of_the_rows(files: list[tuple[int, list[bool]]], first: int, count: int) -> None:
    held = {FAR + start + row for start, mask in files for row, there in enumerate(mask) if there}
    coverage = Coverage([record(i, FAR + start, mask) for i, (start, mask) in enumerate(files)], STORED)
    mask = coverage.covered_mask(FAR + first, count)
    assert mask.tolist() == [FAR + i in held for i in range(first, first + count)]


def test_of_two_files_with_a_row_the_first_committed_is_read() -> None:
    coverage = Coverage([record(0, 10, [True, False, True]), record(1, 10, [True, True, True])], STORED)
    hits = [(hit.record.path, hit.rows.tolist()) for hit in coverage.lookup(np.array([10, 11, 12]))]
    assert hits == [("0", [0, 2]), ("1", [1])]


def test_of_two_files_with_a_row_the_last_committed_is_read_where_that_is_asked() -> None:
    patches = [record(0, 10, [True] * 4), record(1, 12, [True] * 4), record(2, 8, [False] * 3 + [True])]
    hits = [
        (hit.record.path, hit.rows.tolist())
        for hit in Coverage(patches, STORED, newest_first=True).lookup(np.arange(8, 16))
    ]
    assert hits == [("2", [3]), ("1", [0, 1, 2, 3]), ("0", [0])]


def test_nothing_is_found_in_no_files() -> None:
    assert list(Coverage([], STORED).lookup(np.array([1, -1]))) == []
    assert not Coverage([], STORED).covered_mask(0, 3).any()
