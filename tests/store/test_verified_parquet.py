"""Opening a Parquet file verifies its footer, and reading it the pages: together they leave no bit that changes a value."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flipped import flip_bit, forget_verified

from retrodb.errors import DamagedFileError
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles

RNG = np.random.default_rng(1)
TABLE = pa.table(
    {
        "number": pa.array(RNG.integers(0, 1000, 5000), pa.int64()),
        "text": pa.array([f"{n} {n % 7} words" for n in range(5000)], pa.large_string()),
        "tokens": pa.array([[n % 9, n % 11] for n in range(5000)], pa.large_list(pa.uint16())),
    }
)


@pytest.fixture
def record(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> FileRecord:
    monkeypatch.setattr("retrodb.format.blocks.BLOCK_BYTES", 512)
    return publish(storage, "chunks", f"chunks/{'0' * 32}.parquet", lambda local: write_table(local, TABLE))


def read(storage: LocalStorage, record: FileRecord) -> pa.Table:
    """As in a new process."""
    forget_verified()
    return read_table(VerifiedFiles(storage).open(record))


def test_every_damage_to_a_footer_is_found_at_the_opening(storage: LocalStorage, record: FileRecord) -> None:
    assert read(storage, record).equals(TABLE)
    local, size = storage.local(record.path), record.digest.size_bytes
    footer = int.from_bytes(local.read_bytes()[-8:-4], "little")
    draw = random.Random(2)
    places = [0, 3, size - 1, size - 4, size - 5, size - 8, size - 8 - footer]
    for position in [*places, *(size - 8 - draw.randrange(footer) for _ in range(60))]:
        flip_bit(local, position, bit := draw.randrange(8))
        forget_verified()
        with pytest.raises(DamagedFileError, match=rf"{record.path}: checksum mismatch in bytes"):
            VerifiedFiles(storage).open(record)
        flip_bit(local, position, bit)


def test_a_damaged_page_is_found_when_it_is_read_and_its_header_changes_no_value(
    storage: LocalStorage, record: FileRecord
) -> None:
    local = storage.local(record.path)
    metadata = pq.ParquetFile(local).metadata
    columns = [metadata.row_group(group).column(number) for group in (0, 1) for number in range(3)]
    starts = {start for each in columns for start in (each.dictionary_page_offset, each.data_page_offset) if start}
    draw, refused = random.Random(3), 0
    footer = int.from_bytes(local.read_bytes()[-8:-4], "little")
    last = record.digest.size_bytes - 8 - footer - 512 - 40
    later = sorted(start for start in starts if 512 <= start < last)  # other blocks are verified with magic and footer
    for position in [start + draw.randrange(40) for start in later for _ in range(14)]:
        flip_bit(local, position, bit := draw.randrange(8))
        forget_verified()
        VerifiedFiles(storage).open(record)  # reads no page
        try:
            assert read(storage, record).equals(TABLE)
        except DamagedFileError:
            refused += 1
        flip_bit(local, position, bit)
    assert refused > 50


def test_without_its_block_digests_a_parquet_file_is_verified_whole(storage: LocalStorage, record: FileRecord) -> None:
    assert record.blocks_path is not None
    storage.delete(record.blocks_path)
    assert read(storage, record).equals(TABLE)
    flip_bit(storage.local(record.path), record.digest.size_bytes - 20)
    with pytest.raises(DamagedFileError, match=rf"{record.path}: checksum mismatch"):
        read(storage, record)
