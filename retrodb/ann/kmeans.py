"""k-means whose bits depend on the sample and the seed only.

FAISS' own is not used: its assignment is a BLAS product, whose bits change with the number of threads, and one changed
bit makes another codebook digest. Assignment here is `exact_topk`, sums run in row order in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrodb.ann import kernels
from retrodb.ann.exact import exact_topk
from retrodb.ann.metric import FloatArray, Int64Array, Metric

ITERATIONS = 10
FLAT_LISTS = (
    8_192  # beyond it a flat assignment costs more than a graph search, and flat training grows as lists squared
)
SPLIT = 1 / 1024  # relative step by which the halves of a split list differ, as in FAISS


def kmeans(
    sample_SD: FloatArray, num_lists: int, seed: int, metric: Metric, threads: int = 1, iterations: int = ITERATIONS
) -> FloatArray:
    """(num_lists, D) centroids; unit length for the inner product, where length would only favour long centroids.

    Beyond `FLAT_LISTS` it trains in two levels: about sqrt(num_lists) groups first, then each group's share of lists
    within its own points.
    """
    if num_lists <= FLAT_LISTS:
        return _flat_kmeans(sample_SD, num_lists, seed, metric, threads, iterations)
    num_groups = round(num_lists**0.5)
    groups_GD = _flat_kmeans(sample_SD, num_groups, seed, metric, threads, iterations)
    group_S = exact_topk(sample_SD, groups_GD, 1, metric, threads=threads)[0][:, 0]
    shares_G = _shares(np.bincount(group_S, minlength=num_groups), num_lists)
    return np.concatenate(
        [
            _flat_kmeans(sample_SD[group_S == group], share, seed + 1 + group, metric, threads, iterations)
            for group, share in enumerate(shares_G.tolist())
            if share
        ]
    )


def _shares(sizes_G: Int64Array, num_lists: int) -> Int64Array:
    """Lists per group in proportion to its points, at least one for any that has points, `num_lists` in all."""
    shares_G: Int64Array = np.maximum(sizes_G * num_lists // sizes_G.sum(), sizes_G > 0)
    while (missing := num_lists - int(shares_G.sum())) != 0:
        per_list_G = sizes_G / np.maximum(shares_G, 1)
        step = 1 if missing > 0 else -1
        order = np.argsort(-step * np.where(shares_G > (step < 0), per_list_G, -step * np.inf), kind="stable")
        shares_G[order[: abs(missing)]] += step
    return shares_G


def _flat_kmeans(
    sample_SD: FloatArray, num_lists: int, seed: int, metric: Metric, threads: int, iterations: int
) -> FloatArray:
    random = np.random.default_rng(seed)
    centroids_LD = sample_SD[np.sort(random.choice(len(sample_SD), num_lists, replace=False))]
    for _ in range(iterations):
        lists_S = exact_topk(sample_SD, centroids_LD, 1, metric, threads=threads)[0][:, 0]
        centroids_LD = _means(sample_SD, lists_S, num_lists)
        if metric == "inner_product":
            lengths_L = np.sqrt((centroids_LD**2).sum(axis=1, keepdims=True))
            centroids_LD /= np.maximum(lengths_L, np.finfo(np.float32).tiny)
    return centroids_LD


def _means(sample_SD: FloatArray, lists_S: Int64Array, num_lists: int) -> FloatArray:
    """Means of the lists; an empty list takes half of the biggest one."""
    sums_LD: NDArray[np.float64] = np.zeros((num_lists, sample_SD.shape[1]))
    kernels.sum_by_list(lists_S, sample_SD, sums_LD)
    sizes_L = np.bincount(lists_S, minlength=num_lists)
    means_LD = (sums_LD / np.maximum(sizes_L, 1)[:, None]).astype(np.float32)
    for empty in np.flatnonzero(sizes_L == 0):
        biggest = int(np.argmax(sizes_L))
        step = np.where(np.arange(means_LD.shape[1]) % 2, 1 + SPLIT, 1 - SPLIT).astype(np.float32)
        means_LD[empty] = means_LD[biggest] * step
        means_LD[biggest] *= 2 - step
        sizes_L[empty] = sizes_L[biggest] // 2
        sizes_L[biggest] -= sizes_L[empty]
    return means_LD
