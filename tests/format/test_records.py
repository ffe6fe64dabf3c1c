"""What is written is read: manifest records, snapshots, settings, arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import space_entry

from retrodb.errors import DamagedFileError
from retrodb.format.arrays import map_array, save_array
from retrodb.format.document_keys import content_hash, key_of, record_hash
from retrodb.format.entries import SpaceEntry
from retrodb.format.kinds import KINDS, path_of
from retrodb.format.parquet import read_row_groups, read_table, write_table
from retrodb.format.records import (
    OP_DROP_FILE,
    OP_DROP_SHARD,
    DropRecord,
    FileDigest,
    FileRecord,
    Record,
    ScreenedRecord,
    ShardRecord,
    covered,
    records_to_table,
)
from retrodb.format.schemas import MANIFEST
from retrodb.format.settings import Settings, dump_settings, parse_settings
from retrodb.format.snapshot import SegmentRef, Snapshot, dump_snapshot, parse_snapshot, snapshot_number, snapshot_path
from retrodb.store.manifest import Manifest

IDS = st.integers(0, 2**50)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
DIGESTS = st.builds(FileDigest, IDS, st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
BITMAPS = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)
FILES = st.builds(FileRecord, st.sampled_from(["chunks", "vectors"]), TEXT, TEXT, DIGESTS, IDS, IDS, BITMAPS, IDS)


@settings(max_examples=100, deadline=None)
@given(st.lists(FILES, max_size=5))
def test_file_records_survive_the_manifest(files: list[FileRecord]) -> None:
    table = records_to_table(files)
    assert table.schema == MANIFEST
    manifest = Manifest(table)
    assert manifest.all_files() == files
    bitmaps = sorted({f"rows/{file.rows}.roaring" for file in files if file.rows})
    assert manifest.row_files() == bitmaps
    blocks = sorted({file.blocks_path for file in files if file.blocks_path})
    assert manifest.block_files() == blocks
    assert manifest.paths() == [*(file.path for file in files), *bitmaps, *blocks]
    for kind in ("chunks", "vectors"):
        assert manifest.files(kind) == [file for file in files if file.kind == kind]
    assert manifest.files("chunks", "x") == [f for f in files if (f.kind, f.name) == ("chunks", "x")]


def test_replaying_the_log_gives_what_is_left() -> None:
    file = FileRecord("chunks", "", "chunks/a", FileDigest(1, b"", b""), 0, 10, None, 10)
    log: list[Record] = [
        ShardRecord("t", "s", 10, 2, 0),
        file,
        ScreenedRecord("x@1", 0, 4),
        DropRecord(OP_DROP_SHARD, first_chunk=0),
        DropRecord(OP_DROP_FILE, path="chunks/a"),
        ShardRecord("u", "s", 20, 3, 0),
        replace(file, num_chunks=20),
        ScreenedRecord("x@1", 4, 6),
        ScreenedRecord("y@1", 12, 2),
        ScreenedRecord("x@1", 15, 1),
    ]
    manifest = Manifest(records_to_table(log))
    assert [manifest.shards.record(i) for i in range(len(manifest.shards))] == [ShardRecord("u", "s", 20, 3, 0)]
    assert manifest.all_files() == [replace(file, num_chunks=20)]
    assert manifest.screened_ranges("x@1") == [(0, 10), (15, 16)]
    assert manifest.screened_ranges("z@1") == []
    assert manifest.size_by_kind() == {"chunks": (1, 1)}


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(1, 10))
def test_covered_means_every_id_of_the_range(held: set[int], first: int, count: int) -> None:
    ranges = [(i, i + 1) for i in sorted(held)]
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    assert covered(merged, first, count) == set(range(first, first + count)).issubset(held)


SPANS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=5)


@settings(max_examples=200, deadline=None)
@given(SPANS, st.lists(st.integers(-2, 60), max_size=10))
def test_ids_are_located_and_counted_as_a_plain_loop_does(spans: list[tuple[int, int]], asked: list[int]) -> None:
    shards, start = [], 2**33
    for gap, count in spans:
        shards.append(ShardRecord("t", "s", count, 1, start + gap))
        start += gap + count
    ids = np.array([2**33 + i if i >= 0 else -1 for i in asked], dtype=np.int64)
    table = Manifest(records_to_table(shards[::-1])).shards
    index, row = table.locate(ids)
    inside = [[s for s, shard in enumerate(shards) if shard.first_chunk <= i < shard.end_chunk] for i in ids.tolist()]
    assert index.tolist() == [found[0] if found else -1 for found in inside]
    expected = [
        i - shards[found[0]].first_chunk if found else -1 for i, found in zip(ids.tolist(), inside, strict=True)
    ]
    assert row.tolist() == expected
    below = [sum(min(max(i - s.first_chunk, 0), s.num_chunks) for s in shards) for i in ids.tolist()]
    assert table.count_below(ids).tolist() == below


def test_snapshot_survives_its_file() -> None:
    snapshot = Snapshot(
        7,
        6,
        "t",
        "ingest",
        {"a": [1, "é"]},
        "2026",
        2**40,
        ("a", "b"),
        (SegmentRef("d", 3),),
        {"space/x": space_entry()},
    )
    data = dump_snapshot(snapshot)
    assert parse_snapshot(data, where="x") == snapshot
    assert data == dump_snapshot(parse_snapshot(data, where="x"))
    assert snapshot.path == snapshot_path(7) == "snapshots/00000000000000000007.json"
    assert snapshot.names(SpaceEntry) == ["x"]
    assert snapshot.default_space == "default"


@pytest.mark.parametrize("name", ["7.json", "0" * 20 + ".json.tmp", "x" * 20 + ".json", "0" * 21 + ".json", ""])
def test_other_files_beside_snapshots_have_no_number(name: str) -> None:
    assert snapshot_number(f"snapshots/{name}") is None
    assert snapshot_number(snapshot_path(12)) == 12


def test_settings_survive_their_file() -> None:
    made = Settings(64, 8, 'gpt "2"\\', "ab", 50257, "uint16", 0)
    assert parse_settings(dump_settings(made), where="x") == made


def test_every_kind_has_its_folder() -> None:
    for kind in KINDS.values():
        if "/" in kind.pattern:
            assert kind.pattern.startswith(f"{kind.name}/")
    assert path_of("parts", name="s", task="t", file="f") == "parts/s/t/f"


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 4)])
def test_arrays_keep_dtype_and_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
    save_array(tmp_path / "a.npy", array)
    found = map_array(tmp_path / "a.npy")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"no array at all"])
def test_file_that_is_no_array_is_damage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"a\.npy"):
        map_array(tmp_path / "a.npy")


def test_array_of_objects_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedFileError):
        map_array(tmp_path / "a.npy")


def test_flipped_bits_in_parquet_pages_are_never_other_values(tmp_path: Path) -> None:
    """The footer has no checksum of its own: it rests on the xxh3-128 that is compared at the first opening."""
    table = records_to_table([ShardRecord(f"task{i}", "s", i, 2, 10 * i) for i in range(500)])
    write_table(tmp_path / "a", table)
    data = bytearray((tmp_path / "a").read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for position in range(4, footer, 7):
        harmed = data.copy()
        harmed[position] ^= 4
        (tmp_path / "b").write_bytes(harmed)
        for read in (lambda: read_table(tmp_path / "b"), lambda: read_row_groups(tmp_path / "b", [0])):
            try:
                assert read().equals(table)
            except DamagedFileError:
                continue


def test_hashes_tell_apart_what_differs() -> None:
    assert key_of("a", "b") != key_of("ab", "") != key_of("", "ab")
    assert len({record_hash("t", None, b""), record_hash("t", "", b""), record_hash("t", None, b"m")}) == 3
    assert content_hash("t", None) == content_hash("t", None) != content_hash("t", "")
