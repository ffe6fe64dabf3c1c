"""Vectors that are looked up for many parts together are those of one lookup for each part."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from retrodb.format.arrays import Int64Array
from retrodb.stages.embed.reuse import VectorFile, find_reusable, find_reusable_in_groups
from retrodb.view.chunk_set import ChunkSet


class Hashes:
    """Stands for the chunks of a database: the hash of each text by chunk id."""

    def __init__(self, hashes_N: NDArray[np.bytes_]) -> None:
        self._hashes_N = hashes_N
        self.num_reads = 0

    def text_hashes(self, ids: Int64Array) -> NDArray[np.bytes_]:
        self.num_reads += 1
        return self._hashes_N[ids]


def made_hashes(rng: np.random.Generator, size: int) -> NDArray[np.bytes_]:
    return np.array([b"%016d" % number for number in rng.integers(0, 40, size)], dtype="S16")


@pytest.mark.parametrize("group_rows", [1, 7, 1 << 20])
def test_parts_that_are_looked_up_together_reuse_the_same_vectors(group_rows: int) -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        chunks = Hashes(made_hashes(rng, 60))
        ids = np.split(np.sort(rng.permutation(60)[:45]), np.sort(rng.integers(0, 45, 3)))
        files = [VectorFile(f"file{number}", part) for number, part in enumerate(ids)]
        parts = [made_hashes(rng, size) for size in rng.integers(0, 9, 12)]
        expected = [find_reusable(cast(ChunkSet, chunks), files, part) for part in parts]
        for actual, alone in zip(
            find_reusable_in_groups(cast(ChunkSet, chunks), files, parts, group_rows), expected, strict=True
        ):
            assert actual.paths == alone.paths
            assert actual.origins.dtype == alone.origins.dtype
            assert actual.origins.tobytes() == alone.origins.tobytes()


def test_the_files_are_read_once_for_many_small_parts() -> None:
    rng = np.random.default_rng(0)
    chunks = Hashes(made_hashes(rng, 30))
    files = [VectorFile(f"file{number}", np.arange(10 * number, 10 * number + 10)) for number in range(3)]
    list(find_reusable_in_groups(cast(ChunkSet, chunks), files, [made_hashes(rng, 2) for _ in range(100)]))
    assert chunks.num_reads <= len(files)
