"""What leaves a verified array is what was written; damage is found where it is touched, and nowhere else."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flipped import flip_bit, forget_verified
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.errors import DamagedFileError
from retrodb.format.arrays import save_array
from retrodb.format.records import FileRecord
from retrodb.memory import CACHE_FRACTION, PROCESS_MEMORY
from retrodb.store import verified_bytes
from retrodb.store.block_files import rebuild_blocks
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verify import VerifiedFiles

BLOCK = 256
PAIR = np.dtype([("hi", ">u8"), ("lo", "<u4")])
ARRAYS: list[np.ndarray] = [
    np.arange(900, dtype=np.int64),
    np.arange(1500, dtype=np.float16).reshape(300, 5),
    np.arange(6000, dtype=np.int8).reshape(3, 2000),
    np.arange(960, dtype=np.uint16).reshape(80, 3, 4),
    np.array([(n, 2 * n) for n in range(700)], PAIR),
    np.array([(n, 2 * n) for n in range(700)], PAIR).reshape(7, 100),
    np.zeros((0, 8), np.float32),
    np.zeros((40, 0), np.int32),
    np.arange(3, dtype=np.int32),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("retrodb.format.blocks.BLOCK_BYTES", BLOCK)
    forget_verified()
    yield
    forget_verified()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays")


def stored(folder: Path, array: np.ndarray, name: str = "a") -> tuple[LocalStorage, FileRecord]:
    storage = LocalStorage(folder)
    return storage, publish(storage, "vectors", f"vectors/s/{name}.npy", lambda local: save_array(local, array))


def opened(storage: LocalStorage, record: FileRecord) -> VerifiedArray:
    """As in a new process."""
    forget_verified()
    return VerifiedFiles(storage).array(record)


@st.composite
def indexes(draw: st.DrawFn, num_rows: int) -> Any:
    bound = st.none() | st.integers(-num_rows - 2, num_rows + 2)
    forms = [st.builds(slice, bound, bound, st.none() | st.integers(-3, 3).filter(bool))]
    forms.append(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows).map(np.array) if num_rows else bound)
    if num_rows:
        rows = st.integers(-num_rows, num_rows - 1)
        forms += [rows, rows.map(np.int64), st.lists(rows, max_size=9), st.lists(rows, max_size=9).map(np.int32)]
        forms.append(st.lists(rows, min_size=4, max_size=4).map(lambda each: np.array(each).reshape(2, 2)))
    return draw(st.one_of(forms[:1] if not num_rows else forms))


@pytest.mark.parametrize("number", range(len(ARRAYS)))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_index_gives_what_numpy_gives_unless_a_touched_block_is_damaged(
    number: int, data: st.DataObject, folder: Path
) -> None:
    array = ARRAYS[number]
    storage, record = stored(folder, array)
    index = data.draw(indexes(len(array)))
    if array.ndim > 1 and data.draw(st.booleans()):
        index = (index, slice(0, 1))
    expected = array[index]
    assert equal(opened(storage, record)[index], expected)
    start = record.digest.size_bytes - array.nbytes
    position = data.draw(st.integers(0, record.digest.size_bytes - 1))
    flip_bit(storage.local(record.path), position, data.draw(st.integers(0, 7)))
    block = range(position // BLOCK * BLOCK, position // BLOCK * BLOCK + BLOCK)
    rows = np.arange(len(array))[index[0] if isinstance(index, tuple) else index]
    row_bytes = array.nbytes // max(1, len(array))
    touched = [range(0, start), *(range(start + r * row_bytes, start + (r + 1) * row_bytes) for r in np.ravel(rows))]
    if any(each.start < block.stop and block.start < each.stop and len(each) for each in touched):
        with pytest.raises(DamagedFileError, match=rf"^{record.path}: checksum mismatch "):
            opened(storage, record)[index]
    else:
        assert equal(opened(storage, record)[index], expected)


def equal(found: Any, expected: Any) -> bool:
    """Equal values, dtype and shape, and no mapped type that NumPy would treat in another way."""
    is_plain = type(found) is type(expected) and found.dtype == expected.dtype and found.shape == expected.shape
    return is_plain and bool((found == expected).all())


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_whole_arrays_fields_and_declared_ranges_are_those_of_numpy(array: np.ndarray, tmp_path: Path) -> None:
    opened_array = opened(*stored(tmp_path, array))
    assert (opened_array.dtype, opened_array.shape, len(opened_array)) == (array.dtype, array.shape, len(array))
    assert opened_array.ndim == array.ndim
    assert equal(opened_array.whole(), array)
    assert equal(np.asarray(opened_array), array)
    for name in array.dtype.names or ():
        assert equal(opened_array[name], array[name])
    plain = opened_array.declared(np.array([0]), np.array([len(array)]))
    assert equal(plain, array)
    assert not plain.flags.writeable
    for row in range(len(array))[-3:]:
        assert equal(opened(*stored(tmp_path, array)).piece(row), array[row : row + 1])
    if len(array) and array.ndim > 1:
        assert equal(opened_array.row(-1).whole(), array[-1])
        assert equal(opened_array.row(0)[1:], array[0][1:])


def test_a_piece_verifies_no_more_than_its_row(tmp_path: Path) -> None:
    array = ARRAYS[1]
    storage, record = stored(tmp_path, array)
    flip_bit(storage.local(record.path), record.digest.size_bytes - 1)
    rows = opened(storage, record)
    assert equal(rows.piece(0), array[:1])
    with pytest.raises(DamagedFileError, match="checksum mismatch in bytes"):
        rows.piece(len(array) - 1)


def test_a_row_of_a_row_verifies_no_more_than_it_reads(tmp_path: Path) -> None:
    array = ARRAYS[5]
    storage, record = stored(tmp_path, array)
    flip_bit(storage.local(record.path), record.digest.size_bytes - 1)
    rows = opened(storage, record)
    assert equal(rows.row(6)[:50], array[6][:50])
    with pytest.raises(DamagedFileError, match="checksum mismatch in bytes"):
        rows.row(6)[99]


@pytest.mark.parametrize("index", [..., None, (), True, 1.5, np.array([0.5]), (None, 1)])
def test_indexes_that_name_no_rows_are_refused(index: Any, tmp_path: Path) -> None:
    with pytest.raises((TypeError, IndexError)):
        opened(*stored(tmp_path, ARRAYS[1]))[index]


@pytest.mark.parametrize("index", [300, -301, [0, 300], np.array([True])])
def test_rows_outside_of_the_array_are_index_errors(index: Any, tmp_path: Path) -> None:
    array = opened(*stored(tmp_path, ARRAYS[1]))
    with pytest.raises(IndexError):
        array[index]
    array.whole()
    with pytest.raises(IndexError):
        array[index]


def test_only_declared_ranges_are_verified_and_each_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, record = stored(tmp_path, ARRAYS[0])  # 32 rows a block, after 128 bytes of header
    hashed: list[int] = []
    real = verified_bytes.xxhash.xxh3_64_digest
    monkeypatch.setattr(verified_bytes.xxhash, "xxh3_64_digest", lambda data: hashed.append(len(data)) or real(data))
    array = opened(storage, record)
    assert len(hashed) == 1  # the block of the header
    array.declared(np.array([100, 500, 500, 7]), np.array([104, 500, 510, 8]))
    assert len(hashed) == 3  # rows 100 to 103, and 500 to 509; row 7 is in the first block, and a range was empty
    array[500:505]
    VerifiedFiles(storage).array(record)[[101]]
    assert len(hashed) == 3
    array.whole()
    VerifiedFiles(storage).open(record)
    assert VerifiedFiles(storage).array(record)[899] == 899


def test_every_flipped_bit_of_a_header_is_found(tmp_path: Path) -> None:
    storage, record = stored(tmp_path, ARRAYS[0])
    for position in range(128):
        flip_bit(storage.local(record.path), position, position % 8)
        with pytest.raises(DamagedFileError, match=record.path):
            opened(storage, record)
        flip_bit(storage.local(record.path), position, position % 8)
    assert opened(storage, record)[5] == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"no array at all",
        b"\x93NUMPY\x01\x00\x06\x00{'a'}\n",
        b"\x93NUMPY\x03\x00\x06\x00\x00\x00{'a'}\n",
    ],
)
def test_bytes_that_are_no_array_are_refused_although_they_are_undamaged(data: bytes, storage: LocalStorage) -> None:
    record = publish(storage, "vectors", "vectors/s/a.npy", lambda local: local.write_bytes(data))
    with pytest.raises(DamagedFileError, match=r"vectors/s/a\.npy: not a readable \.npy file"):
        opened(storage, record)


def test_arrays_of_objects_in_fortran_order_or_cut_are_refused(storage: LocalStorage) -> None:
    for array in (np.array([{}, 1], dtype=object), np.asfortranarray(np.ones((3, 4)))):
        record = publish(storage, "vectors", "vectors/s/a.npy", partial(np.save, arr=array, allow_pickle=True))
        with pytest.raises(DamagedFileError, match=r"not a readable \.npy file"):
            opened(storage, record)
    record = publish(storage, "vectors", "vectors/s/a.npy", lambda local: save_array(local, ARRAYS[0]))
    cut = storage.read(record.path)[:-8]
    other = publish(storage, "vectors", "vectors/s/a.npy", lambda local: local.write_bytes(cut))
    with pytest.raises(DamagedFileError, match="bytes instead of"):
        opened(storage, record)
    with pytest.raises(DamagedFileError, match=r"bytes for shape \(900,\)"):
        opened(storage, other)


def damage_missing(storage: LocalStorage, path: str, other: str) -> None:
    storage.delete(path)


def damage_flipped(storage: LocalStorage, path: str, other: str) -> None:
    flip_bit(storage.local(path), 3)


def damage_cut(storage: LocalStorage, path: str, other: str) -> None:
    storage.write(path, storage.read(path)[:-8])


def damage_swapped(storage: LocalStorage, path: str, other: str) -> None:
    storage.write(path, storage.read(other))


@pytest.mark.parametrize("harm", [damage_missing, damage_flipped, damage_cut, damage_swapped])
def test_without_its_block_digests_a_file_is_verified_whole(harm: Any, storage: LocalStorage) -> None:
    root, array = storage.root, ARRAYS[0]
    _, record = stored(root, array)
    _, other = stored(root, array + 1, "b")
    assert record.blocks_path is not None
    assert other.blocks_path is not None
    intact = storage.read(record.blocks_path)
    harm(storage, record.blocks_path, other.blocks_path)
    assert opened(storage, record)[7] == 7
    with pytest.raises(DamagedFileError, match=record.blocks_path):
        VerifiedFiles(storage).verify(record)
    flip_bit(storage.local(record.path), 5000)
    with pytest.raises(DamagedFileError, match=rf"{re.escape(record.path)}: checksum mismatch \(expected"):
        opened(storage, record)
    with pytest.raises(DamagedFileError, match=record.path):
        rebuild_blocks(storage, record)
    flip_bit(storage.local(record.path), 5000)
    rebuild_blocks(storage, record)
    assert storage.read(record.blocks_path) == intact
    VerifiedFiles(storage).verify(record)


def test_a_file_of_one_block_has_no_block_digests(storage: LocalStorage) -> None:
    _, record = stored(storage.root, ARRAYS[-1])
    assert record.blocks_path is None
    assert storage.list("blocks") == []
    flip_bit(storage.local(record.path), record.digest.size_bytes - 1)
    with pytest.raises(DamagedFileError, match=record.path):
        opened(storage, record)


def test_whole_reads_name_the_damaged_block(storage: LocalStorage) -> None:
    _, record = stored(storage.root, ARRAYS[0])
    flip_bit(storage.local(record.path), 5000)
    forget_verified()
    with pytest.raises(
        DamagedFileError, match=r"checksum mismatch in bytes 4,864 to 5,119\. It can be rebuilt from chunks"
    ):
        VerifiedFiles(storage).open(record)


def test_a_process_verifies_a_file_that_is_read_whole_once_also_among_thousands(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = verified_bytes.FILES_BY_BLOCK + 10
    paths = [f"runs/r/reuse/{number}.npy" for number in range(count)]
    files = [publish(storage, "runs", path, partial(save_array, array=np.arange(3))) for path in paths]
    for file in files:
        VerifiedFiles(storage).array(file).whole()
    monkeypatch.setattr("retrodb.store.verified_bytes.xxhash.xxh3_64_digest", pytest.fail)
    for file in files:
        assert VerifiedFiles(storage).array(file)[:1].tolist() == [0]


def test_the_digests_of_many_open_files_stay_within_the_memory_limit(tmp_path: Path) -> None:
    values = np.arange(1 << 17, dtype=np.int64)  # 4,097 blocks
    pairs = [stored(tmp_path, values + number, f"{number}") for number in range(12)]
    limit, size = PROCESS_MEMORY.limit_bytes, 8 * 4097
    PROCESS_MEMORY.begin(2 * size * CACHE_FRACTION)
    tracemalloc.start()
    try:
        arrays = [opened(*pair) for pair in pairs]
        for _ in range(2):
            for number, array in enumerate(arrays):
                assert array[[5, 99_999]].tolist() == [number + 5, number + 99_999]
        assert tracemalloc.get_traced_memory()[0] < 7 * size  # two of them, and a byte for each block of all
    finally:
        tracemalloc.stop()
        PROCESS_MEMORY.begin(limit)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_a_whole_array_needs_no_block_digests(array: np.ndarray, tmp_path: Path) -> None:
    storage, record = stored(tmp_path, array)
    if record.blocks_path is not None:
        storage.delete(record.blocks_path)
    whole = VerifiedFiles(storage).whole_array(record)
    assert (whole.dtype, whole.shape) == (array.dtype, array.shape)
    assert (whole == array).all()


def test_a_flipped_bit_is_found_in_a_whole_array(tmp_path: Path) -> None:
    storage, record = stored(tmp_path, ARRAYS[0])
    flip_bit(storage.local(record.path), 5_000)
    with pytest.raises(DamagedFileError, match="checksum mismatch"):
        VerifiedFiles(storage).whole_array(record)


def test_a_header_in_another_form_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    header = b"{'shape': (2,3), 'fortran_order':False, 'descr': '<i2'}\n"
    values = np.arange(6, dtype=np.int16)
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values.tobytes()
    storage = LocalStorage(tmp_path)
    record = publish(storage, "vectors", "vectors/s/a.npy", lambda local: local.write_bytes(content))
    assert VerifiedFiles(storage).array(record)[:].tolist() == values.reshape(2, 3).tolist()
