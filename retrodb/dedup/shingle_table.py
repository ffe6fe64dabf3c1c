"""The shingles of a test set as a hash table for the leak scan, in `.npy` files that workers memory-map and share.

Shapes: `N` items of the test set, `K` distinct shingle keys of all items, `P` postings (pairs of a key and an item that has
it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import NGRAM, SHINGLE_VERSION, shingle_sets
from retrodb.errors import DamagedFileError, MismatchError, MissingFileError
from retrodb.format.arrays import AnyArray, ByteArray, Int32Array, Int64Array, UInt64Array, map_array
from retrodb.format.text_arrays import text_buffers

# Up to 32 after rounding to a power of two. The filter passes 3 to 6% of the keys that are not in the table.
FILTER_BITS_PER_KEY = 16


@dataclass(frozen=True)
class ShingleTable:
    """The shingles of a test set, ready for a scan. `build_shingle_table` makes it."""

    header: Int64Array  # (2,) SHINGLE_VERSION and words of a shingle
    keys: UInt64Array  # (K,) ascending
    posting_offsets: Int64Array  # (K + 1,)
    posting_items: NDArray[np.int32]  # (P,) items of each key, ascending within a key
    slots: Int32Array  # (power of two >= 2 K,) position in `keys`, or -1: open addressing with linear probing
    filter_bits: ByteArray  # bit n is set if the top bits of a key are n: rejects most other keys quickly
    item_sizes: Int64Array  # (N,) distinct shingles of each item
    short_keys: UInt64Array  # (S,) ascending: whole-text keys of the items of fewer than n words
    short_items: NDArray[np.int32]  # (S,) their items
    text_bytes: ByteArray  # UTF-8 of all items
    text_offsets: Int64Array  # (N + 1,)
    id_bytes: ByteArray  # UTF-8 of all item ids
    id_offsets: Int64Array  # (N + 1,)

    @property
    def ngram(self) -> int:
        """Words of a shingle."""
        return int(self.header[1])

    @property
    def num_items(self) -> int:
        """The number of items N."""
        return len(self.item_sizes)

    def texts(self) -> pa.LargeStringArray:
        """(N,) the texts of all items, not copied."""
        offsets = np.ascontiguousarray(self.text_offsets)
        return pa.LargeStringArray.from_buffers(self.num_items, pa.py_buffer(offsets), pa.py_buffer(self.text_bytes))

    def text(self, item: int) -> str:
        """The text of an item."""
        return bytes(self.text_bytes[self.text_offsets[item] : self.text_offsets[item + 1]]).decode()

    def id(self, item: int) -> str:
        """The id of an item."""
        return bytes(self.id_bytes[self.id_offsets[item] : self.id_offsets[item + 1]]).decode()


def build_shingle_table(texts: pa.Array, ids: Sequence[str], ngram: int = NGRAM) -> ShingleTable:
    """The table of a test set's texts (N,) and their ids (N,)."""
    sets = shingle_sets(texts, ngram)
    items = np.repeat(np.arange(len(texts), dtype=np.int32), sets.sizes())
    order = np.argsort(sets.keys, kind="stable")  # stable: items stay ascending within a key
    sorted_keys = sets.keys[order]
    firsts = np.flatnonzero(
        np.concatenate([np.ones(min(len(sorted_keys), 1), bool), sorted_keys[1:] != sorted_keys[:-1]])
    )
    keys = sorted_keys[firsts]
    short = np.flatnonzero((sets.num_words > 0) & (sets.num_words < ngram))
    short = short[np.argsort(sets.whole_keys[short], kind="stable")]
    text_bytes, text_offsets = _copy_buffers(texts)
    id_bytes, id_offsets = _copy_buffers(pa.array(ids, pa.large_string()))
    return ShingleTable(
        header=np.array([SHINGLE_VERSION, ngram]),
        keys=keys,
        posting_offsets=np.append(firsts, len(order)).astype(np.int64),
        posting_items=items[order],
        slots=fill_slots(keys, 1 << max(2 * len(keys) - 1, 1).bit_length()),
        filter_bits=_fill_filter(keys, _log2_filter_bits(len(keys))),
        item_sizes=sets.sizes(),
        short_keys=sets.whole_keys[short],
        short_items=short.astype(np.int32),
        text_bytes=text_bytes,
        text_offsets=text_offsets,
        id_bytes=id_bytes,
        id_offsets=id_offsets,
    )


def save_shingle_table(table: ShingleTable, folder: Path) -> None:
    """Write the arrays of a table as `<field>.npy` to an existing folder. Equal tables give equal bytes."""
    for field in fields(table):
        np.save(folder / f"{field.name}.npy", getattr(table, field.name), allow_pickle=False)


def load_shingle_table(files: Iterable[Path]) -> ShingleTable:
    """Memory-map the files that `save_shingle_table` wrote; each may lie in a folder of its own.

    Raises:
        MissingFileError: an array does not exist.
        DamagedFileError: an array is not readable, or has another length than the table needs.
        MismatchError: the table has another version of the shingle specification.
    """
    paths = {path.stem: path for path in files}
    table = ShingleTable(**{field.name: _map(paths, field.name) for field in fields(ShingleTable)})
    folder = paths["header"].parent
    if table.header.shape != (2,) or len(table.posting_offsets) != len(table.keys) + 1:
        raise DamagedFileError("the arrays of the test set do not match", where=str(folder))
    if table.header[0] != SHINGLE_VERSION:
        raise MismatchError(
            f"the shingles have version {table.header[0]}, but this retrodb uses version {SHINGLE_VERSION}",
            where=str(folder),
            remedy="Register the test set again with 'retrodb dedup --against'.",
        )
    return table


def _map(paths: Mapping[str, Path], field: str) -> AnyArray:
    try:
        return map_array(paths[field])
    except (KeyError, FileNotFoundError) as error:
        raise MissingFileError("a file of a registered test set is missing", where=f"{field}.npy") from error


def _copy_buffers(texts: pa.Array) -> tuple[ByteArray, Int64Array]:
    """Bytes and offsets of an Arrow array, copied, because its buffers may be much larger."""
    data, offsets = text_buffers(texts)
    return data[offsets[0] : offsets[-1]].copy(), offsets - offsets[0]


def _log2_filter_bits(num_keys: int) -> int:
    return max(FILTER_BITS_PER_KEY * num_keys - 1, 1023).bit_length()


@kernel
def _fill_filter(keys: UInt64Array, log2_bits: int) -> ByteArray:
    bits = np.zeros(1 << (log2_bits - 3), np.uint8)
    shift = np.uint64(64 - log2_bits)
    for key in keys:
        bit = key >> shift
        bits[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))
    return bits


@kernel
def fill_slots(keys: UInt64Array, size: int) -> Int32Array:
    """Slots of a hash table with open addressing for distinct keys. `size` is a power of two above their number."""
    slots = np.full(size, -1, np.int32)
    mask = np.uint64(size - 1)
    for position in range(len(keys)):
        slot = keys[position] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = position
    return slots


@kernel
def find_key(key: np.uint64, keys: UInt64Array, slots: Int32Array) -> int:
    """The position of a key in `keys`, or -1."""
    mask = np.uint64(len(slots) - 1)
    slot = key & mask
    while slots[slot] >= 0:
        if keys[np.uint64(slots[slot])] == key:
            return np.int64(slots[slot])  # type: ignore[return-value]
        slot = (slot + np.uint64(1)) & mask
    return -1
