"""Vectors that need no computation, because a chunk with the same text has one in the space already.

Equal texts have equal xxh3-128 hashes in the `hashes` files. The hashes of existing vectors are read one file at a time.
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
    """A file of vectors that can be reused."""

    path: str
    chunk_ids: Int64Array  # (n,) the database's chunks that its rows belong to, in the order of the rows


@dataclass(frozen=True)
class ReusableVectors:
    """For some rows the place of an existing vector."""

    paths: list[str]  # files of vectors
    origins: Int64Array  # (R, 3): row without a vector, index of the file in `paths`, position in the file


def find_reusable(chunks: ChunkSet, files: Iterable[VectorFile], hashes: NDArray[np.bytes_]) -> ReusableVectors:
    """Find existing vectors of the texts with these hashes (N,) S16. The first file that has a text is used."""
    is_missing = np.ones(len(hashes), dtype=bool)
    paths: list[str] = []
    origins = [np.empty((0, 3), dtype=np.int64)]
    for file in files:
        if not is_missing.any():
            break
        positions = _first_equal(hashes, chunks.text_hashes(file.chunk_ids))
        rows = np.flatnonzero(is_missing & (positions >= 0))
        if len(rows):
            is_missing[rows] = False
            origins.append(np.stack([rows, np.full(len(rows), len(paths)), positions[rows]], axis=1))
            paths.append(file.path)
    return ReusableVectors(paths, np.concatenate(origins))


def _first_equal(new: NDArray[np.bytes_], old: NDArray[np.bytes_]) -> Int64Array:
    """For every new hash the first position of an equal old one; -1 where there is none."""
    if not len(old):
        return np.full(len(new), -1, dtype=np.int64)
    by_hash = np.argsort(old, kind="stable")
    ranks = np.minimum(np.searchsorted(old[by_hash], new), len(old) - 1)
    return np.where(old[by_hash[ranks]] == new, by_hash[ranks], -1)
