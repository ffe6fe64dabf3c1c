"""Vectors that need no computation: a chunk text that the space has seen has its vector already.

Equal texts are known by the xxh3-128 in the `hashes` files. The old ones are streamed past the new, file by file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import Int64Array
from retrodb.view.chunk_set import ChunkSet


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors that may be used again."""

    path: str
    chunk_ids: Int64Array  # (n,) of the database's chunks that its rows belong to, in their order


@dataclass(frozen=True)
class ReusableVectors:
    """Where vectors are to be had."""

    paths: list[str]  # files of vectors
    origins: Int64Array  # (R, 3): row that wants a vector, index of the file, position in it


def find_reusable(chunks: ChunkSet, sources: Iterable[VectorFile], wanted: NDArray[np.bytes_]) -> ReusableVectors:
    """Which of the texts with these hashes (N,) S16 have a vector in which file; the first file counts."""
    waiting = np.ones(len(wanted), dtype=bool)
    paths: list[str] = []
    origins = [np.empty((0, 3), dtype=np.int64)]
    for source in sources:
        if not waiting.any():
            break
        position = _first_equal(wanted, chunks.text_hashes(source.chunk_ids))
        hit = np.flatnonzero(waiting & (position >= 0))
        if len(hit):
            waiting[hit] = False
            origins.append(np.stack([hit, np.full(len(hit), len(paths)), position[hit]], axis=1))
            paths.append(source.path)
    return ReusableVectors(paths, np.concatenate(origins))


def _first_equal(new: NDArray[np.bytes_], old: NDArray[np.bytes_]) -> Int64Array:
    """For every new hash the first position of an equal old one, -1 without."""
    if not len(old):
        return np.full(len(new), -1, dtype=np.int64)
    by_hash = np.argsort(old, kind="stable")
    at = np.minimum(np.searchsorted(old[by_hash], new), len(old) - 1)
    return np.where(old[by_hash[at]] == new, by_hash[at], -1)
