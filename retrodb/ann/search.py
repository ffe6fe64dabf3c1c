"""Search of few queries over all parts through FAISS: one coarse quantization, one merged top-k, exact rerank.

For many queries, or exclusion keys, `join` is the tool; this one answers a user, or a serving process, at low latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodb.ann.codebook import Codebook, faiss_module
from retrodb.ann.metric import NO_NEIGHBOUR, FloatArray, Int64Array, Vectors, check_vectors
from retrodb.ann.rerank import LivePart, rerank
from retrodb.ann.topk import TopK, merge_topk

SLACK = 16  # candidates beyond k that get an exact distance


def search(
    queries_QD: Vectors,
    parts: Sequence[LivePart],
    codebook: Codebook,
    k: int,
    nprobe: int,
    slack: int = SLACK,
    threads: int = 1,
) -> TopK:
    """The k nearest allowed rows of each query, (ids_QK, distances_QK); rows short of k probe on until all lists are read.

    The answer does not depend on how rows are spread over parts; with fast-scan codes, whose coarse distances often tie,
    that holds but for ties at the last candidate, which FAISS cuts as they come.

    Raises:
        MismatchError: queries of another dimension.
        InputError: NaN in a query; names the row.
    """
    queries = check_vectors(queries_QD, codebook.dim, where="queries")
    candidates_QW = _candidates(queries, parts, codebook, k + slack, nprobe, threads)
    wanted = min(k, sum(part.num_allowed for part in parts))
    while nprobe < codebook.num_lists:
        starved = np.flatnonzero((candidates_QW != NO_NEIGHBOUR).sum(axis=1) < wanted)
        if not len(starved):
            break
        nprobe = min(4 * nprobe, codebook.num_lists)
        candidates_QW[starved] = _candidates(queries[starved], parts, codebook, k + slack, nprobe, threads)
    return rerank(queries, candidates_QW, parts, k, codebook.metric, threads)


def _candidates(
    queries: FloatArray, parts: Sequence[LivePart], codebook: Codebook, width: int, nprobe: int, threads: int
) -> Int64Array:
    """The `width` nearest by search codes, -1 padded."""
    nprobe = min(nprobe, codebook.num_lists)
    rotated = codebook.transform(queries)
    if codebook.ivf is None:
        lists_QA, distances_QA = np.zeros((len(queries), 1), np.int64), np.zeros((len(queries), 1), np.float32)
    else:
        lists_QA = codebook.nearest_lists(queries, nprobe, threads).astype(np.int64)
        distances_QA = _coarse_distances(rotated, lists_QA, codebook)
    partials = [_search_part(rotated, part, width, lists_QA, distances_QA, codebook) for part in parts]
    return merge_topk(partials, width)[0] if partials else np.full((len(queries), width), NO_NEIGHBOUR, np.int64)


def _coarse_distances(rotated: FloatArray, lists_QA: Int64Array, codebook: Codebook) -> FloatArray:
    """Distances of queries and their lists in FAISS' own sense (inner products are positive)."""
    distances_QA = np.empty(lists_QA.shape, dtype=np.float32)
    for row, lists in enumerate(lists_QA):
        centroids = codebook.centroids_LD[lists]
        if codebook.metric == "squared_l2":
            distances_QA[row] = ((centroids - rotated[row]) ** 2).sum(axis=1)
        else:
            distances_QA[row] = (centroids * rotated[row]).sum(axis=1)
    return distances_QA


def _search_part(
    rotated: FloatArray, live: LivePart, width: int, lists_QA: Int64Array, distances_QA: FloatArray, codebook: Codebook
) -> TopK:
    faiss = faiss_module()
    selector = None if live.allowed_N is None else _selector(np.packbits(live.allowed_N, bitorder="little"))
    index = live.part.index
    if codebook.ivf is None:
        found = index.search(rotated, width, params=faiss.SearchParameters(sel=selector))
    else:
        if isinstance(index, faiss.IndexPreTransform):
            index = faiss.downcast_index(index.index)
        parameters = _parameters(index, selector, lists_QA.shape[1])
        found = np.empty((len(rotated), width), np.float32), np.empty((len(rotated), width), np.int64)
        x, lists, coarse, distances, rows = map(faiss.swig_ptr, (rotated, lists_QA, distances_QA, *found))
        # The Python wrapper refuses parameters; the method below it takes them.
        index.search_preassigned_c(len(rotated), x, width, lists, coarse, distances, rows, False, parameters)
    distances_QW, rows_QW = found
    ids_QW = np.where(rows_QW >= 0, live.ids_N[np.maximum(rows_QW, 0)] if len(live.ids_N) else rows_QW, NO_NEIGHBOUR)
    return ids_QW, -distances_QW if codebook.metric == "inner_product" else distances_QW


def _parameters(index: Any, selector: Any, nprobe: int) -> Any:
    """One-bit codes take parameters of their own, whose defaults differ from the index's."""
    faiss = faiss_module()
    if isinstance(index, faiss.IndexIVFRaBitQ | faiss.IndexIVFRaBitQFastScan):
        return faiss.IVFRaBitQSearchParameters(sel=selector, nprobe=nprobe, qb=index.qb)
    return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)


def _selector(bits: Any) -> Any:
    """A FAISS row filter; its first argument counts bytes, not rows."""
    faiss = faiss_module()
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    selector.bits_kept_alive = bits
    return selector
