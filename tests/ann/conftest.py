"""Made-up vectors: topics of unequal size, near-duplicates and identical vectors, as text has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from retrodb.ann.codebook import Codebook
from retrodb.ann.part import build_part, open_part
from retrodb.ann.rerank import LivePart


def mixture(num_vectors: int, dim: int, seed: int, identical: int = 0) -> np.ndarray:
    """Unit float16 vectors around topics of power-law sizes; the first `identical` are the same."""
    random = np.random.default_rng(seed)
    topics = random.standard_normal((50, dim))
    which = np.minimum(random.zipf(1.5, num_vectors) - 1, 49)
    vectors = topics[which] + 0.6 * random.standard_normal((num_vectors, dim))
    vectors[:identical] = vectors[0]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


class Spread:
    """Builds parts, under one folder, that cut the vectors at the given rows."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, 0

    def __call__(
        self,
        vectors: np.ndarray,
        codebook: Codebook,
        cuts: Sequence[int] = (),
        allowed: np.ndarray | None = None,
        **keys: np.ndarray,
    ) -> list[LivePart]:
        bounds = [0, *cuts, len(vectors)]
        return [self._part(slice(*pair), vectors, codebook, allowed, keys) for pair in pairwise(bounds)]

    def _part(
        self,
        rows: slice,
        vectors: np.ndarray,
        codebook: Codebook,
        allowed: np.ndarray | None,
        keys: dict[str, np.ndarray],
    ) -> LivePart:
        folder = self._folder / str(self._made)
        folder.mkdir()
        self._made += 1
        build_part(vectors[rows], codebook, folder)
        mask = None if allowed is None else allowed[rows]
        ids = np.arange(rows.start, rows.stop)
        return LivePart(
            open_part(folder), ids, vectors[rows].__getitem__, mask, {k: key[rows] for k, key in keys.items()}
        )


@pytest.fixture
def spread(tmp_path: Path) -> Spread:
    return Spread(tmp_path)


def brute_force(queries: np.ndarray, vectors: np.ndarray, mask: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Ids of the k nearest unmasked rows by float64 distances rounded to what float32 sums can tell, ties by id."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    distances = -(q @ v.T) if metric == "inner_product" else ((q[:, None] - v[None]) ** 2).sum(axis=2)
    distances = np.where(mask, np.inf, distances)
    ids = np.argsort(np.round(distances, 9), axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(distances, ids, axis=1)
    result = np.where(np.isinf(nearest), -1, ids)
    return np.pad(result, ((0, 0), (0, k - result.shape[1])), constant_values=-1)
