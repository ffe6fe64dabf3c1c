"""The list-major neighbour join: each inverted list is read once per block of queries, for all queries that probe it.

Query-at-a-time search reads every list once per query that probes it. Here the queries of a block are grouped by list:
one product of 6-bit codes, an insertion of what is nearer than the query's running W-th best (home lists first, which
lowers these limits early), and an exact rerank of the W survivors. Threads take ranges of queries of equal work
and share nothing. On a GPU the same products run on tensor cores (`gpu_scan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.codegen.grouping import group_by_list
from retrodb.ann.codegen.list_scan import ScannedLists, ScannedQueries, scan_lists
from retrodb.ann.codegen.six_bit_codes import CodeSpace, QueryCodes, empty_query_codes, encode_queries
from retrodb.ann.exact import run_ranges, run_rows
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.gpu_scan import ListColumns, scan_on_device
from retrodb.ann.metric import NO_NEIGHBOUR, check_vectors
from retrodb.ann.rerank import LivePart, gather, rerank
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array, VectorArray

RERANK_MARGIN = 8  # 18 exact distances at k = 10: measured best between 16 and 20


def join_block(
    queries_QD: VectorArray,
    lists_QA: Int32Array | None,
    parts: Sequence[LivePart],
    codebook: Codebook,
    k: int,
    nprobe: int,
    exclusion: Exclusion | None = None,
    rerank_margin: int = RERANK_MARGIN,
    threads: int = 1,
    device: str = "cpu",
) -> TopK:
    """The k nearest allowed rows of each query in its `nprobe` nearest lists, (ids_QK, distances_QK).

    A row's answer depends on that row and the database only, not on the block, its order, or the threads. Rows short of
    k probe further lists until they have k or all lists are read. Blocks should be of queries near each other: then
    they read few lists.

    Args:
        lists_QA: each query's nearest lists as stored when it was added; computed here where missing or too few.
        rerank_margin: candidates beyond k that get an exact distance; the order by codes is wrong by a few positions.
        device: "cpu" for the compiled scan, or the PyTorch device that computes the products.

    Raises:
        MismatchError: another dimension, or exclusion keys that are missing.
        InputError: NaN or infinity; names the row.
    """
    exclusion = exclusion or Exclusion.of(len(queries_QD))
    nprobe = min(nprobe, codebook.num_lists)
    if lists_QA is None or lists_QA.shape[1] < nprobe:
        lists_QA = codebook.nearest_lists(check_vectors(queries_QD, codebook.dim, where="queries"), nprobe, threads)
    by_home = np.argsort(lists_QA[:, 0], kind="stable")
    queries = gather(queries_QD, by_home, codebook.dim, "queries")
    exclusion = exclusion.rows(by_home)
    database = _ScannedDatabase.of(parts, codebook, exclusion)
    scan = partial(_scan_on_cpu, threads=threads) if device == "cpu" else partial(_scan_on_gpu, device=device)
    candidates_QW = scan(queries, lists_QA[by_home, :nprobe], database, k + rerank_margin, exclusion)
    wanted = min(k, sum(part.num_allowed for part in parts))
    while nprobe < codebook.num_lists:
        starved = np.flatnonzero((candidates_QW != NO_NEIGHBOUR).sum(axis=1) < wanted)
        if not len(starved):
            break
        nprobe = min(4 * nprobe, codebook.num_lists)
        lists = codebook.nearest_lists(queries[starved], nprobe, threads)
        candidates_QW[starved] = scan(queries[starved], lists, database, k + rerank_margin, exclusion.rows(starved))
    ids_QK, distances_QK = empty_topk(len(queries), k)
    ids_QK[by_home], distances_QK[by_home] = rerank(queries, candidates_QW, parts, k, codebook.metric, threads)
    return ids_QK, distances_QK


@dataclass(frozen=True)
class _ScannedDatabase:
    """What a scan reads."""

    parts: Sequence[LivePart]
    keys: list[tuple[Int64Array, ...]]  # exclusion keys by part row, one array a kind, for each part
    sizes_L: Int64Array  # vectors in each list
    space: CodeSpace

    @classmethod
    def of(cls, parts: Sequence[LivePart], codebook: Codebook, exclusion: Exclusion) -> _ScannedDatabase:
        keys = [exclusion.columns(part.keys, len(part.ids_N), str(part.part.folder)) for part in parts]
        sizes_L = sum((np.diff(part.part.offsets_L1) for part in parts), np.zeros(codebook.num_lists, np.int64))
        return cls(parts, keys, sizes_L, CodeSpace(codebook.centre_D, codebook.metric == "squared_l2"))


def _scan_on_cpu(
    queries: Float32Array,
    lists_QA: Int32Array,
    database: _ScannedDatabase,
    width: int,
    exclusion: Exclusion,
    threads: int,
) -> Int64Array:
    """The `width` nearest by codes, -1 padded; threads take ranges of queries, whose results are independent."""
    codes = _query_codes(queries, database.space, threads)
    best = empty_topk(len(queries), width)
    pairs = zip(database.parts, database.keys, strict=True)
    scanned_parts = [_scanned_lists(live, keys, lists_QA) for live, keys in pairs]

    def run(first: int, stop: int) -> None:
        for probes_QA in (lists_QA[:, :1], lists_QA[:, 1:]):  # home lists first
            groups = group_by_list(probes_QA, first, stop, len(database.sizes_L))
            scanned = ScannedQueries(groups, codes, exclusion.query_keys())
            for lists in scanned_parts:
                scan_lists(scanned, lists, database.space, best)

    run_ranges(run, _bounds_of_equal_work(database.sizes_L, lists_QA, threads), threads)
    return best[0]


def _query_codes(queries: Float32Array, space: CodeSpace, threads: int) -> QueryCodes:
    codes = empty_query_codes(*queries.shape)
    run_rows(lambda first, stop: encode_queries(first, stop, queries, space, codes), len(queries), threads)
    return codes


def _scanned_lists(live: LivePart, keys: tuple[Int64Array, ...], lists_QA: Int32Array) -> ScannedLists:
    """What a scan of some lists of a part reads."""
    part = live.part
    arrays = part.lists(lists_QA)
    return ScannedLists(
        offsets_L1=part.offsets_L1,
        order_N=arrays.order_N,
        codes_ND=arrays.codes_ND,
        scales_N2=arrays.scales_N2,
        allowed_N=np.empty(0, dtype=np.bool_) if live.allowed_N is None else live.allowed_N,
        ids_N=live.ids_N,
        keys=keys,
    )


def _bounds_of_equal_work(sizes_L: Int64Array, lists_QA: Int32Array, threads: int) -> list[int]:
    """Bounds of ranges of queries, one a thread, that scan about as many vectors each."""
    scanned_Q = np.cumsum(np.where(lists_QA >= 0, sizes_L[lists_QA], 0).sum(axis=1))
    targets = np.linspace(0, scanned_Q[-1] if len(scanned_Q) else 0, threads + 1)[1:-1]
    return [0, *np.searchsorted(scanned_Q, targets).tolist(), len(lists_QA)]


def _scan_on_gpu(
    queries: Float32Array,
    lists_QA: Int32Array,
    database: _ScannedDatabase,
    width: int,
    exclusion: Exclusion,
    device: str,
) -> Int64Array:
    """`_scan_on_cpu` on a device of PyTorch."""
    if not database.parts:
        return np.full((len(queries), width), NO_NEIGHBOUR, dtype=np.int64)

    def columns_of(list_: int) -> ListColumns:
        return _concatenated([
            _columns(live, keys, list_) for live, keys in zip(database.parts, database.keys, strict=True)
        ])  # fmt: skip

    keys = [exclusion.padded(kind) for kind in range(len(exclusion.kinds))]
    spans = [(int(live.ids_N[0]), int(live.ids_N[-1]) + 1) for live in database.parts if len(live.ids_N)]
    ids = range(min((first for first, _ in spans), default=0), max((end for _, end in spans), default=0))
    intervals = exclusion.padded_intervals()
    return scan_on_device(queries, lists_QA, columns_of, keys, intervals, *database.space, width, device, ids)


def _columns(live: LivePart, keys: tuple[Int64Array, ...], list_: int) -> ListColumns:
    """The allowed vectors of a list in one part."""
    part = live.part
    start, stop = part.offsets_L1[list_ : list_ + 2].tolist()
    positions, rows = np.arange(start, stop), part.order_N[start:stop]
    if live.allowed_N is not None:
        allowed = live.allowed_N[rows]
        positions, rows = positions[allowed], rows[allowed]
    keys_of_kinds = [keys_N[rows] for keys_N in keys if len(keys_N)]
    keys_JC = np.stack(keys_of_kinds) if len(keys[0]) else np.empty((0, len(rows)), np.int64)
    return ListColumns(part.codes_ND[positions], part.scales_N2[positions, 0], live.ids_N[rows], keys_JC)


def _concatenated(pieces: Sequence[ListColumns]) -> ListColumns:
    """The columns of all parts by ascending id; those of one part are in this order."""
    if len(pieces) == 1:
        return pieces[0]
    ids_C = np.concatenate([piece.ids_C for piece in pieces])
    order = np.argsort(ids_C, kind="stable")
    return ListColumns(
        np.concatenate([piece.codes_CD for piece in pieces])[order],
        np.concatenate([piece.scales_C for piece in pieces])[order],
        ids_C[order],
        np.concatenate([piece.keys_JC for piece in pieces], axis=1)[:, order],
    )
