"""k-means whose bits depend on the sample and the seed only, on a CPU. On a GPU they also depend on the kind of GPU.

FAISS' own is not used: its assignment is a BLAS product, whose bits change with the number of threads, and one changed
bit makes another codebook digest. Assignment here is `exact_topk`, or a GPU's; sums run in row order in float64.
"""

from __future__ import annotations

import numpy as np

from retrodb.ann.codegen.grouping import sum_by_list
from retrodb.ann.exact import exact_topk
from retrodb.format.arrays import Float32Array, Float64Array, Int64Array
from retrodb.format.entries import Metric

ITERATIONS = 10
# With more lists an exact assignment takes longer than a graph search, and the time of exact training grows as lists squared.
FLAT_LISTS = 8_192
FLAT_TRAINING = 1_024  # with more lists, training first makes groups and then lists within each group
REFINEMENTS = 2  # iterations over all lists after that, up to FLAT_LISTS: 2 of 10, a fifth of the work of flat training
SPLIT = 1 / 1024  # relative step by which the halves of a split list differ, as in FAISS
GPU_ROWS = 65_536  # of one product: 65,536 * 8,192 lists * 4 bytes (float32) = 2 GiB


def kmeans(
    sample_SD: Float32Array, num_lists: int, seed: int, metric: Metric, threads: int = 1, iterations: int = ITERATIONS
) -> Float32Array:
    """(num_lists, D) centroids; unit length for the inner product, where length would only favour long centroids.

    Beyond `FLAT_TRAINING` it trains in two levels: about sqrt(num_lists) groups first, then lists within each group's
    points, in proportion to their number, then, up to `FLAT_LISTS`, all lists over all points.
    """
    if num_lists <= FLAT_TRAINING:
        return _lloyd(sample_SD, _seeds(sample_SD, num_lists, seed), metric, threads, iterations)
    num_groups = round(num_lists**0.5)
    groups_GD = _lloyd(sample_SD, _seeds(sample_SD, num_groups, seed), metric, threads, iterations)
    group_S = _nearest(sample_SD, groups_GD, metric, threads)
    lists_G = _lists_per_group(np.bincount(group_S, minlength=num_groups), num_lists)
    centroids = []
    for group, lists in enumerate(lists_G.tolist()):
        if lists:
            points = sample_SD[group_S == group]
            centroids.append(_lloyd(points, _seeds(points, lists, seed + 1 + group), metric, threads, iterations))
    return _lloyd(sample_SD, np.concatenate(centroids), metric, threads, REFINEMENTS if num_lists <= FLAT_LISTS else 0)


def _nearest(vectors_ND: Float32Array, centroids_LD: Float32Array, metric: Metric, threads: int) -> Int64Array:
    """(N,) nearest centroid of each vector: by faiss-gpu where it is installed, by torch on a GPU, else exactly."""
    import faiss
    import torch

    if getattr(faiss, "get_num_gpus", int)() > 0 and hasattr(faiss, "knn_gpu"):
        kind = faiss.METRIC_L2 if metric == "squared_l2" else faiss.METRIC_INNER_PRODUCT
        resources = faiss.StandardGpuResources()
        return np.asarray(faiss.knn_gpu(resources, vectors_ND, centroids_LD, 1, metric=kind)[1][:, 0], dtype=np.int64)
    if torch.cuda.is_available():
        return nearest_by_torch(vectors_ND, centroids_LD, metric, "cuda")
    return exact_topk(vectors_ND, centroids_LD, 1, metric, threads=threads)[0][:, 0]


def nearest_by_torch(vectors_ND: Float32Array, centroids_LD: Float32Array, metric: Metric, device: str) -> Int64Array:
    """(N,) nearest centroid of each vector by a float32 product on a device, the same block by block."""
    import torch

    centroids = torch.from_numpy(centroids_LD).to(device)
    # The length of the vector itself does not change which centroid is nearest.
    lengths_L = (centroids**2).sum(dim=1) / 2 if metric == "squared_l2" else torch.zeros(len(centroids), device=device)
    nearest = []
    for start in range(0, len(vectors_ND), GPU_ROWS):
        block = torch.from_numpy(vectors_ND[start : start + GPU_ROWS]).to(device)
        nearest.append((block @ centroids.T - lengths_L).argmax(dim=1).cpu().numpy())
    return np.concatenate(nearest).astype(np.int64)


def _lists_per_group(sizes_G: Int64Array, num_lists: int) -> Int64Array:
    """Lists per group in proportion to its points, at least one for any that has points, `num_lists` in all."""
    lists_G: Int64Array = np.maximum(sizes_G * num_lists // sizes_G.sum(), sizes_G > 0)
    while (missing := num_lists - int(lists_G.sum())) != 0:
        per_list_G = sizes_G / np.maximum(lists_G, 1)
        step = 1 if missing > 0 else -1
        order = np.argsort(-step * np.where(lists_G > (step < 0), per_list_G, -step * np.inf), kind="stable")
        lists_G[order[: abs(missing)]] += step
    return lists_G


def _seeds(sample_SD: Float32Array, num_lists: int, seed: int) -> Float32Array:
    chosen = np.random.default_rng(seed).choice(len(sample_SD), num_lists, replace=False)
    return sample_SD[np.sort(chosen)]


def _lloyd(
    sample_SD: Float32Array, centroids_LD: Float32Array, metric: Metric, threads: int, iterations: int
) -> Float32Array:
    for _ in range(iterations):
        lists_S = _nearest(sample_SD, centroids_LD, metric, threads)
        centroids_LD = _means(sample_SD, lists_S, len(centroids_LD))
        if metric == "inner_product":
            lengths_L = np.sqrt((centroids_LD**2).sum(axis=1, keepdims=True))
            centroids_LD /= np.maximum(lengths_L, np.finfo(np.float32).tiny)
    return centroids_LD


def _means(sample_SD: Float32Array, lists_S: Int64Array, num_lists: int) -> Float32Array:
    """Means of the lists; an empty list takes half of the largest one."""
    sums_LD: Float64Array = np.zeros((num_lists, sample_SD.shape[1]))
    sum_by_list(lists_S, sample_SD, sums_LD)
    sizes_L = np.bincount(lists_S, minlength=num_lists)
    means_LD = (sums_LD / np.maximum(sizes_L, 1)[:, None]).astype(np.float32)
    for empty in np.flatnonzero(sizes_L == 0):
        largest = int(np.argmax(sizes_L))
        step = np.where(np.arange(means_LD.shape[1]) % 2, 1 + SPLIT, 1 - SPLIT).astype(np.float32)
        means_LD[empty] = means_LD[largest] * step
        means_LD[largest] *= 2 - step
        sizes_L[empty] = sizes_L[largest] // 2
        sizes_L[largest] -= sizes_L[empty]
    return means_LD
