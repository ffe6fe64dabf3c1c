"""The `ids` files: for every document of a shard, its key, the hash of its content, and where it begins.

Sorted by key, so that a new version of a source is compared with the old by merging, without reading any text.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import Int64Array

IdArray: TypeAlias = NDArray[Any]

ID_DTYPE = np.dtype(
    [
        ("key_hi", "<u8"),  # xxh3-128 of source, NUL, doc_id: upper half
        ("key_lo", "<u8"),
        ("hash_hi", "<u8"),  # xxh3-128 of text, NUL, value, NUL, metadata: upper half
        ("hash_lo", "<u8"),
        ("row", "<i8"),  # the document's first row in the shard
    ]
)

HASH_DTYPE = np.dtype([("hi", ">u8"), ("lo", ">u8")])
"""One entry of a `hashes` file: the 16 bytes of an xxh3-128 in their canonical order."""


def key_of(source: str, doc_id: str) -> int:
    """128-bit key of a document of a source."""
    return xxhash.xxh3_128_intdigest(f"{source}\0{doc_id}".encode())


def record_hash(text: str, value: str | None, metadata: bytes) -> int:
    """128-bit hash of all that makes a document: any difference makes it a changed one."""
    state = xxhash.xxh3_128(text.encode())
    state.update(b"\0" if value is None else b"\0v" + value.encode())
    state.update(b"\0" + metadata)
    return state.intdigest()


def content_hash(text: str, value: str | None) -> bytes:
    """16 bytes that are equal for equal texts, whatever their ids and metadata."""
    return xxhash.xxh3_128_digest((text if value is None else f"{text}\0{value}").encode())


def text_hashes(texts: pa.LargeStringArray) -> IdArray:
    """(N,) HASH_DTYPE: the xxh3-128 of each text's UTF-8, by which equal chunk texts are known."""
    view = memoryview(texts.buffers()[2] or b"")
    bounds = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    digests = b"".join(xxhash.xxh3_128_digest(view[start:end]) for start, end in pairwise(bounds))
    return np.frombuffer(digests, dtype=HASH_DTYPE)


def id_entries(keys: list[int], hashes: list[int], rows: list[int]) -> IdArray:
    """An array of ID_DTYPE in the order given."""
    array = np.empty(len(keys), dtype=ID_DTYPE)
    low = (1 << 64) - 1
    array["key_hi"] = [k >> 64 for k in keys]
    array["key_lo"] = [k & low for k in keys]
    array["hash_hi"] = [h >> 64 for h in hashes]
    array["hash_lo"] = [h & low for h in hashes]
    array["row"] = rows
    return array


def sort_ids(array: IdArray) -> IdArray:
    """The entries by ascending key, equal keys by ascending row."""
    return array[np.lexsort((array["row"], array["key_lo"], array["key_hi"]))]


class SortedEntries(Protocol):
    """(M,) entries sorted by key: an array, or a mapped file of which only what is asked for is read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int64Array, /) -> IdArray: ...


def equal_keys(first: SortedEntries, second: SortedEntries) -> tuple[Int64Array, Int64Array]:
    """Each (H,) int64: the positions of all pairs of entries with the same key, ascending in the shorter array.

    Both arrays are sorted by key. The keys of the shorter one are searched in the longer one, of which only the pages that
    these binary searches touch are read.
    """
    if len(first) > len(second):
        positions, others = equal_keys(second, first)
        return others, positions
    keys = first if isinstance(first, np.ndarray) else first[np.arange(len(first))]
    halves = np.ascontiguousarray(keys["key_hi"])
    low, high = (_count_before(second, halves, after_equal=after_equal) for after_equal in (False, True))
    counts = high - low  # 1 for a hit, unless keys share this half
    positions = np.repeat(np.arange(len(halves)), counts)
    others = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(len(positions))
    is_equal = keys[positions]["key_lo"] == second[others]["key_lo"]
    return positions[is_equal], others[is_equal]


_STEPS_OF_SEARCH = 20  # of 2^20 entries: a search for more keys than a 20th of the entries reads them all
_FEW_ENTRIES = 4096  # 160 KiB: to read them all takes a tenth of the time of a search


def _count_before(entries: SortedEntries, halves: NDArray[np.uint64], *, after_equal: bool) -> Int64Array:
    """(H,) int64: the number of sorted entries whose upper half is less than each half; `after_equal` counts equal ones too."""
    is_read_whole = len(entries) <= max(len(halves) * _STEPS_OF_SEARCH, _FEW_ENTRIES)
    if is_read_whole and not isinstance(entries, np.ndarray):
        entries = entries[np.arange(len(entries))]
    if isinstance(entries, np.ndarray):
        return np.asarray(np.searchsorted(entries["key_hi"], halves, side="right" if after_equal else "left"))
    low, high = np.zeros(len(halves), dtype=np.int64), np.full(len(halves), len(entries), dtype=np.int64)
    while (is_open := low < high).any():
        middle = (low[is_open] + high[is_open]) // 2
        upper = entries[middle]["key_hi"]
        is_before = (upper <= halves[is_open]) if after_equal else (upper < halves[is_open])
        low[is_open] = np.where(is_before, middle + 1, low[is_open])
        high[np.flatnonzero(is_open)[~is_before]] = middle[~is_before]
    return low
