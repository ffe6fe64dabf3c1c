"""Search of few queries over all parts through FAISS: one coarse quantization, one merged top-k, exact rerank.

This search answers a user, or a serving process, at low latency. For many queries, or exclusion keys, use `join`.

Distances by short codes often tie. Of the rows that tie with the last candidate FAISS keeps those that it reads first, which
depends on how rows are spread over parts. So a full row of candidates drops all that tie with its last. `Flat` has
the vectors themselves and a product whose last bits depend on the batch; rows within their error of the last candidate are
uncertain. Rows with fewer than k certain candidates are searched again with more candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.codegen.distances import fixed_distances
from retrodb.ann.codegen.insertion import insert_candidates
from retrodb.ann.exact import estimate_error
from retrodb.ann.faiss_library import FaissObject, faiss_module
from retrodb.ann.list_scanner import ProbedLists
from retrodb.ann.metric import NO_NEIGHBOUR, check_vectors
from retrodb.ann.part import Part
from retrodb.ann.rerank import SearchPart, rerank, rerank_by_id
from retrodb.ann.routing import lists_at_most, more_probes
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import BoolArray, ByteArray, Float32Array, Int64Array, VectorArray

MAX_WIDTH = 1 << 16  # with so many candidates ties are kept as FAISS gives them: a hundred thousand equal vectors


def search(
    queries_QD: VectorArray,
    parts: Sequence[SearchPart],
    codebook: Codebook,
    k: int,
    nprobe: int,
    rerank_margin: int | None = None,
    threads: int = 1,
    fetch: Callable[[Int64Array], VectorArray] | None = None,
    most_lists: int = 0,
) -> TopK:
    """The k nearest allowed rows of each query, (ids_QK, distances_QK); rows short of k probe on until all lists are read.

    The answer does not depend on how rows are spread over parts.

    Args:
        rerank_margin: candidates beyond k that get an exact distance; None takes the codebook's, which depends on its codes.
        fetch: chunk ids (any order) -> their vectors (n, D), read once for all parts. None asks each part for its rows.
        most_lists: that a row short of k reads; 0: all.

    Raises:
        MismatchError: queries of another dimension.
        InputError: NaN in a query; names the row.
    """
    queries = check_vectors(queries_QD, codebook.dim, where="queries")
    ids_QK, distances_QK = empty_topk(len(queries), k)
    parts = [part for part in parts if part.max_allowed]
    wanted = min(k, sum(part.max_allowed for part in parts))  # rows that have fewer read all lists
    width = k + (codebook.rerank_margin if rerank_margin is None else rerank_margin)
    rows, most = np.arange(len(queries) if wanted else 0), lists_at_most(most_lists, codebook.num_lists)
    while len(rows):
        candidates_RW, is_cut_R = _candidates(queries[rows], parts, codebook, wanted, width, nprobe, threads)
        if fetch is None:
            nearest = rerank(queries[rows], candidates_RW, parts, k, codebook.metric, threads)
        else:
            nearest = rerank_by_id(queries[rows], candidates_RW, fetch, k, codebook.metric, threads)
        ids_QK[rows], distances_QK[rows] = nearest
        is_short_R = is_cut_R | ((candidates_RW != NO_NEIGHBOUR).sum(axis=1) < wanted)
        if is_cut_R.any():
            width *= 4
        elif nprobe < most:
            nprobe = more_probes(nprobe, most)
        else:
            break
        rows = rows[is_short_R]
    return ids_QK, distances_QK


def _candidates(
    queries: Float32Array,
    parts: Sequence[SearchPart],
    codebook: Codebook,
    wanted: int,
    width: int,
    nprobe: int,
    threads: int,
) -> tuple[Int64Array, BoolArray]:
    """The `width` nearest by search codes, -1 where there are none; and the rows where too few of them are certain."""
    nprobe = min(nprobe, codebook.num_lists)
    rotated = codebook.transform(queries)
    best = ids_QW, distances_QW = empty_topk(len(queries), width)
    if codebook.ivf is None:
        _search_parts(partial(_scan_vectors, rotated), parts, best)
    else:
        lists_QA = codebook.nearest_lists_of(rotated, nprobe, threads).astype(np.int64)
        distances_QA = _coarse_distances(rotated, lists_QA, codebook)
        with codebook.scanners.probing(rotated, lists_QA, distances_QA) as probed:
            _search_parts(partial(_scan_lists, probed), parts, best)
    is_full_Q = (ids_QW[:, -1] != NO_NEIGHBOUR) & (width < MAX_WIDTH)
    if codebook.ivf is None:
        lengths = [float(part.part.scales_N2.whole()[:, 1].max()) ** 0.5 for part in parts]
        margin_Q = estimate_error(queries, max(lengths), codebook.metric == "squared_l2")
        certain_Q = (distances_QW < distances_QW[:, -1:] - 2 * margin_Q[:, None]).sum(axis=1)
    elif codebook.is_coarse:
        ids_QW[is_full_Q[:, None] & (distances_QW == distances_QW[:, -1:])] = NO_NEIGHBOUR
        certain_Q = (ids_QW != NO_NEIGHBOUR).sum(axis=1)
    else:
        return ids_QW, np.zeros(len(queries), dtype=np.bool_)
    return ids_QW, is_full_Q & (certain_Q < wanted)


def _coarse_distances(rotated: Float32Array, lists_QA: Int64Array, codebook: Codebook) -> Float32Array:
    """Distances of queries and their lists in FAISS' convention, where inner products are positive."""
    distances_QA = np.empty(lists_QA.shape, dtype=np.float32)
    is_l2 = codebook.metric == "squared_l2"
    fixed_distances(rotated, lists_QA, codebook.centroids_LD, is_l2, distances_QA)
    return distances_QA if is_l2 else -distances_QA


_Scan = Callable[[Part, int, FaissObject], TopK]
"""A part, a width, a row filter or None -> rows (Q, width), -1 where there are no more, and distances as FAISS has them."""


def _search_parts(scan: _Scan, parts: Sequence[SearchPart], best: TopK) -> None:
    """Merges the nearest allowed rows of all parts by search codes into the best of each query, in place."""
    for part in parts:
        insert_candidates(_search_part(scan, part, best), best)


def _search_part(scan: _Scan, live: SearchPart, best: TopK) -> TopK:
    """The nearest allowed rows of a part by search codes that can be among the best, (ids, distances)."""
    width, last_Q = best[0].shape[1], best[1][:, -1]
    if live.asks_candidates:
        ids_QV, distances_QV = _scan(scan, live, width + width // 4 + 16, last_Q, None)
        refused_QV = ~live.are_allowed(ids_QV)
        is_whole_Q = (ids_QV[:, -1] == NO_NEIGHBOUR) | ((~refused_QV).sum(axis=1) >= width)
        if is_whole_Q.all():
            ids_QV[refused_QV], distances_QV[refused_QV] = NO_NEIGHBOUR, np.inf
            nearest_QW = np.argsort(refused_QV, axis=1, kind="stable")[:, :width]
            return np.take_along_axis(ids_QV, nearest_QW, 1), np.take_along_axis(distances_QV, nearest_QW, 1)
    allowed_N = live.allowed_N
    return _scan(scan, live, width, last_Q, None if allowed_N is None else np.packbits(allowed_N, bitorder="little"))


def _scan(scan: _Scan, live: SearchPart, width: int, last_Q: Float32Array, allowed_bits: ByteArray | None) -> TopK:
    """The `width` nearest rows of a part by search codes, of those in the bitmap if one is given; -1 for those after the last."""
    rows_QW, distances_QW = scan(live.part, width, None if allowed_bits is None else _selector(allowed_bits))
    if live.part.meta.metric == "inner_product":
        np.negative(distances_QW, out=distances_QW)
    is_near_QW = (rows_QW >= 0) & (distances_QW <= last_Q[:, None])
    ids_QW = np.full(rows_QW.shape, NO_NEIGHBOUR)
    ids_QW[is_near_QW] = live.ids_of(rows_QW[is_near_QW])
    return ids_QW, distances_QW


def _scan_lists(probed: ProbedLists, part: Part, width: int, selector: FaissObject) -> TopK:
    return probed.scan(part.lists_in_memory(probed.lists_P), width, selector)


def _scan_vectors(queries: Float32Array, part: Part, width: int, selector: FaissObject) -> TopK:
    """By the products that `IndexFlat` computes."""
    faiss, vectors_ND = faiss_module(), part.search_codes.array.whole()
    distances_QW, rows_QW = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
    x, y, distances, rows = map(faiss.swig_ptr, (queries, vectors_ND, distances_QW, rows_QW))
    sizes = queries.shape[1], len(queries), len(vectors_ND), width
    if part.meta.metric == "inner_product":
        faiss.knn_inner_product(x, y, *sizes, distances, rows, selector)
    else:
        faiss.knn_L2sqr(x, y, *sizes, distances, rows, None, selector)
    return rows_QW, distances_QW


def _selector(bits: ByteArray) -> FaissObject:
    """A FAISS row filter; its first argument counts bytes, not rows. FAISS keeps a pointer to the bits, so they must live."""
    faiss = faiss_module()
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    selector.bits_kept_alive = bits
    return selector
