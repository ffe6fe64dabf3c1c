"""Vectors that need no computation: a chunk text that the space has seen has its vector already.

Equal texts are known by the xxh3-128 in the `hashes` files. The old ones are streamed past the new, shard by shard.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.ids import IdArray
from retrodb.format.records import FileRecord
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

HashKeys: TypeAlias = NDArray[np.bytes_]


def plan_reuse(view: View, vectors: Coverage, hashes: FileRecord, wanted: BoolArray) -> list[dict[str, Any]]:
    """Which wanted rows take their vector from which file.

    Returns:
        For each vector file that is of use its path, with `rows` of the new chunks and their `positions` in it.
    """
    rows = np.flatnonzero(wanted)
    new = _as_bytes(np.asarray(view.chunks.map(hashes))[rows])
    waiting = np.ones(len(rows), dtype=bool)
    plan = []
    for record in vectors.records:
        if not waiting.any():
            break
        old = np.asarray(view.chunks.map(view.chunks.file("hashes", record.first_chunk, record.num_chunks)))
        position = _first_equal(new, _as_bytes(old[record.row_set.present]))
        hit = np.flatnonzero(waiting & (position >= 0))
        if len(hit):
            waiting[hit] = False
            plan.append({"path": record.path, "rows": rows[hit].tolist(), "positions": position[hit].tolist()})
    return plan


def _first_equal(new: HashKeys, old: HashKeys) -> Int64Array:
    """For every new hash the first position of an equal old one, -1 without."""
    by_hash = np.argsort(old, kind="stable")
    at = np.minimum(np.searchsorted(old[by_hash], new), max(len(old) - 1, 0))
    if not len(old):
        return np.full(len(new), -1, dtype=np.int64)
    return np.where(old[by_hash[at]] == new, by_hash[at], -1)


def _as_bytes(hashes: IdArray) -> HashKeys:
    """16-byte values that order as big-endian numbers do."""
    return np.ascontiguousarray(hashes).view("S16")
