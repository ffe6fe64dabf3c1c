"""The `ids` files: for every document of a shard, its key, the hash of its content, and where it begins.

Sorted by key, so that a new version of a source is compared with the old by merging, without reading any text.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

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


def equal_keys(first: IdArray, second: IdArray) -> tuple[Int64Array, Int64Array]:
    """Each (H,) int64: the positions of all pairs of entries with the same key, ascending in the shorter array.

    Both arrays are sorted by key. The keys of the shorter one are searched in the longer one, of which only the pages that
    these binary searches touch are read.
    """
    if len(first) > len(second):
        positions, others = equal_keys(second, first)
        return others, positions
    halves, others_halves = np.ascontiguousarray(first["key_hi"]), np.asarray(second["key_hi"])
    low = np.searchsorted(others_halves, halves)
    hits = np.flatnonzero(low < len(second))
    hits = hits[others_halves[low[hits]] == halves[hits]]
    if not len(hits):
        return hits, hits
    counts = np.searchsorted(others_halves, halves[hits], side="right") - low[hits]  # 1, unless keys share this half
    positions = np.repeat(hits, counts)
    others = np.repeat(low[hits] - np.cumsum(counts) + counts, counts) + np.arange(len(positions))
    is_equal = first["key_lo"][positions] == second["key_lo"][others]
    return positions[is_equal], others[is_equal]
