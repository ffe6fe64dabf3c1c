"""k-means whose bits depend on the sample and the seed only, on a CPU. On a GPU they also depend on the kind of GPU.

FAISS' own is not used: its assignment is a BLAS product, whose bits change with the number of threads, and one changed
bit makes another codebook digest. Assignment here is `FixedRows`, or a GPU's; sums run in row order in float64.
"""

from __future__ import annotations

import numpy as np

from retrodb.ann.codegen.grouping import sum_by_list
from retrodb.ann.exact import FixedRows
from retrodb.encode.gpu_devices import may_have_gpu
from retrodb.format.arrays import Float32Array, Float64Array, Int64Array
from retrodb.format.entries import Metric

ITERATIONS = 10
FLAT_TRAINING = 1_024  # with more lists, training first makes groups and then lists within each group
SPLIT = 1 / 1024  # relative step by which the halves of a split list differ, as in FAISS
GPU_ROWS = 65_536  # of one product: 65,536 * 8,192 lists * 4 bytes (float32) = 2 GiB


def kmeans(sample_SD: Float32Array, num_lists: int, seed: int, metric: Metric, threads: int = 1) -> Float32Array:
    """(num_lists, D) centroids; unit length for the inner product, where length would only favour long centroids."""
    centroids_LD = _seeds(sample_SD, num_lists, seed)
    for _ in range(ITERATIONS):
        lists_S = nearest_centroid(sample_SD, centroids_LD, metric, threads)
        sums_LD: Float64Array = np.zeros((num_lists, sample_SD.shape[1]))
        sum_by_list(lists_S, sample_SD, sums_LD)
        centroids_LD = centroids_of(sums_LD, np.bincount(lists_S, minlength=num_lists), metric)
    return centroids_LD


def centroids_of(sums_LD: Float64Array, sizes_L: Int64Array, metric: Metric) -> Float32Array:
    """(L, D) the means of lists from sums and numbers of their vectors; an empty list takes half of the largest one."""
    means_LD = (sums_LD / np.maximum(sizes_L, 1)[:, None]).astype(np.float32)
    sizes = sizes_L.astype(np.int64)
    for empty in np.flatnonzero(sizes == 0):
        largest = int(np.argmax(sizes))
        step = np.where(np.arange(means_LD.shape[1]) % 2, 1 + SPLIT, 1 - SPLIT).astype(np.float32)
        means_LD[empty] = means_LD[largest] * step
        means_LD[largest] *= 2 - step
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]
    if metric == "inner_product":
        lengths_L = np.sqrt((means_LD**2).sum(axis=1, keepdims=True))
        means_LD /= np.maximum(lengths_L, np.finfo(np.float32).tiny)
    return means_LD


def nearest_centroid(vectors_ND: Float32Array, centroids_LD: Float32Array, metric: Metric, threads: int) -> Int64Array:
    """(N,) nearest centroid of each vector: by faiss-gpu where it is installed, by torch on a GPU, else exactly."""
    if not may_have_gpu():
        return _exactly_nearest(vectors_ND, centroids_LD, metric, threads)
    import faiss
    import torch

    if getattr(faiss, "get_num_gpus", int)() > 0 and hasattr(faiss, "knn_gpu"):
        kind = faiss.METRIC_L2 if metric == "squared_l2" else faiss.METRIC_INNER_PRODUCT
        resources = faiss.StandardGpuResources()
        return np.asarray(faiss.knn_gpu(resources, vectors_ND, centroids_LD, 1, metric=kind)[1][:, 0], dtype=np.int64)
    if torch.cuda.is_available():
        return nearest_by_torch(vectors_ND, centroids_LD, metric, "cuda")
    return _exactly_nearest(vectors_ND, centroids_LD, metric, threads)


def _exactly_nearest(vectors_ND: Float32Array, centroids_LD: Float32Array, metric: Metric, threads: int) -> Int64Array:
    nearest_N: Int64Array = FixedRows.of(centroids_LD).nearest(vectors_ND, 1, metric, threads)[:, 0]
    return nearest_N


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


def _seeds(sample_SD: Float32Array, num_lists: int, seed: int) -> Float32Array:
    chosen = np.random.default_rng(seed).choice(len(sample_SD), num_lists, replace=False)
    return sample_SD[np.sort(chosen)]
