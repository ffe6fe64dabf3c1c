"""Vectors that need no computation, because a chunk with the same text has one in the space already.

Equal texts have equal xxh3-128 hashes in the `hashes` files. The hashes of existing vectors are read one file at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import Int64Array
from retrodb.view.chunk_set import ChunkSet

_GROUP_ROWS = 1 << 20
"""Rows whose vectors are looked up together: 16 MiB of hashes."""


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


def find_reusable_in_groups(
    chunks: ChunkSet,
    files: Sequence[VectorFile],
    parts: Iterable[NDArray[np.bytes_]],
    group_rows: int = _GROUP_ROWS,
) -> Iterator[ReusableVectors]:
    """Find existing vectors for each of many parts; equal to `find_reusable` of every part.

    Small parts are looked up together, so that the number of times a file is read does not grow with the number of parts.

    Args:
        parts: hashes (n,) S16 of each part.
        group_rows: parts are looked up together until they have this many rows.
    """
    group: list[NDArray[np.bytes_]] = []
    num_rows = 0
    for hashes in parts:
        group.append(hashes)
        num_rows += len(hashes)
        if num_rows >= group_rows:
            yield from _split(find_reusable(chunks, files, np.concatenate(group)), group)
            group, num_rows = [], 0
    if group:
        yield from _split(find_reusable(chunks, files, np.concatenate(group)), group)


def _split(found: ReusableVectors, group: Sequence[NDArray[np.bytes_]]) -> Iterator[ReusableVectors]:
    """The vectors of each part of a group; a part names only the files that it uses."""
    by_row = found.origins[np.argsort(found.origins[:, 0], kind="stable")]
    ends = np.cumsum([len(hashes) for hashes in group])
    bounds = np.searchsorted(by_row[:, 0], np.concatenate(([0], ends)))
    for hashes, end, low, high in zip(group, ends, bounds[:-1], bounds[1:], strict=True):
        rows, file_of, positions = by_row[low:high].T
        used, file_of = np.unique(file_of, return_inverse=True)
        origins = np.stack([rows - (end - len(hashes)), file_of, positions], axis=1)
        by_file = np.argsort(file_of, kind="stable")
        yield ReusableVectors([found.paths[index] for index in used], np.ascontiguousarray(origins[by_file]))


def _first_equal(new: NDArray[np.bytes_], old: NDArray[np.bytes_]) -> Int64Array:
    """For every new hash the first position of an equal old one; -1 where there is none."""
    if not len(old):
        return np.full(len(new), -1, dtype=np.int64)
    by_hash = np.argsort(old, kind="stable")
    ranks = np.minimum(np.searchsorted(old[by_hash], new), len(old) - 1)
    return np.where(old[by_hash[ranks]] == new, by_hash[ranks], -1)
