"""The list-major neighbour join: each inverted list is read once per block of queries, for all queries that probe it.

Query-at-a-time search reads every list once per query that probes it. Here the queries of a block are grouped by list:
one product of 6-bit codes, an insertion of what is nearer than the query's running W-th best (home lists first, which
lowers these limits early), and an exact rerank of the W survivors. Threads take ranges of queries of equal work
and share nothing. On a GPU the same products run on tensor cores (`gpu_scan`).

A join may be split by ranges of lists: `scan_lists_of` gives the best W by (code distance, id) in some lists, and the best of
several such results are those of all lists together. So no answer depends on the number of ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.codegen.grouping import group_by_list
from retrodb.ann.codegen.list_scan import ScannedLists, ScannedQueries, scan_lists
from retrodb.ann.codegen.six_bit_codes import CodeSpace, QueryCodes, empty_query_codes, encode_queries
from retrodb.ann.exact import run_ranges, run_rows
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.gpu_scan import ListColumns, scan_on_device
from retrodb.ann.list_rows import ListRows
from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.metric import CAPPED, NO_NEIGHBOUR, check_vectors
from retrodb.ann.rerank import LivePart, gather, rerank, rerank_by_id
from retrodb.ann.routing import lists_at_most, more_probes
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import BoolArray, Float32Array, Int32Array, Int64Array, VectorArray

RERANK_MARGIN = 8  # 18 exact distances at k = 10: measured best between 16 and 20

JoinedPart = LivePart | ListRows


def join_block(
    queries_QD: VectorArray,
    lists_QA: Int32Array | None,
    parts: Sequence[LivePart] | Sequence[ListRows],
    codebook: Codebook,
    k: int,
    nprobe: int,
    exclusion: Exclusion | None = None,
    rerank_margin: int = RERANK_MARGIN,
    threads: int = 1,
    device: str = "cpu",
    fetch: Callable[[Int64Array], VectorArray] | None = None,
    most_lists: int = 0,
) -> TopK:
    """The k nearest allowed rows of each query in its `nprobe` nearest lists, (ids_QK, distances_QK).

    A row's answer depends on that row and the database only, not on the block, its order, or the threads. Rows short of
    k probe further lists until they have k or all lists are read, or `most_lists` of them: then the distance of what they lack
    is `CAPPED`. Blocks should be of queries near each other: then they read few lists.

    Args:
        lists_QA: each query's nearest lists as stored when it was added; computed here where missing or too few.
        rerank_margin: candidates beyond k that get an exact distance; the order by codes is wrong by a few positions.
        device: "cpu" for the compiled scan, or the PyTorch device that computes the products.
        fetch: chunk ids (any order) -> their vectors (n, D). None reads them by the rows of live parts.
        most_lists: that a row reads when it is short of k; 0: all.

    Raises:
        MismatchError: another dimension, or exclusion keys that are missing.
        InputError: NaN or infinity; names the row.
    """
    exclusion = exclusion or Exclusion.of(len(queries_QD))
    nprobe = min(nprobe, codebook.num_findable)
    if lists_QA is None or lists_QA.shape[1] < nprobe:
        lists_QA = codebook.nearest_lists(check_vectors(queries_QD, codebook.dim, where="queries"), nprobe, threads)
    by_home = np.argsort(lists_QA[:, 0], kind="stable")
    queries = gather(queries_QD, by_home, codebook.dim, "queries")
    lists, exclusion = lists_QA[by_home, :nprobe], exclusion.rows(by_home)
    database = ScannedDatabase.of(parts, codebook, codebook.num_lists)
    candidates_QW, is_capped_Q = nearest_by_codes(
        queries, lists, database, codebook, k, exclusion, rerank_margin, threads, device, most_lists
    )
    if fetch is None:
        live = [part for part in parts if isinstance(part, LivePart)]
        nearest = rerank(queries, candidates_QW, live, k, codebook.metric, threads)
    else:
        nearest = rerank_by_id(queries, candidates_QW, fetch, k, codebook.metric, threads)
    ids_QK, distances_QK = empty_topk(len(queries), k)
    mark_capped(nearest, is_capped_Q)
    ids_QK[by_home], distances_QK[by_home] = nearest
    return ids_QK, distances_QK


def nearest_by_codes(
    queries: Float32Array,
    lists_QA: Int32Array,
    database: ScannedDatabase,
    codebook: Codebook,
    k: int,
    exclusion: Exclusion,
    rerank_margin: int = RERANK_MARGIN,
    threads: int = 1,
    device: str = "cpu",
    most_lists: int = 0,
) -> tuple[Int64Array, BoolArray]:
    """The candidates of each query, (Q, k + margin) ids by the distances of codes; rows short of k probe further lists.

    Args:
        lists_QA: -1 where a row reads fewer lists. Rows short of k probe their nearest lists.
        database: all lists.
        most_lists: that a row reads; 0: all.

    Returns:
        Also (Q,) which rows are short of k and have not read all lists.
    """
    width, nprobe = k + rerank_margin, lists_QA.shape[1]
    candidates_QW = scan_lists_of(
        queries, lists_QA, database, exclusion, empty_topk(len(queries), width), threads, device
    )
    wanted, most = min(k, database.num_allowed), lists_at_most(most_lists, codebook.num_findable)
    # A routed row may read fewer lists than it has columns.
    is_partial_Q = (lists_QA >= 0).sum(axis=1) < most
    while True:
        is_short_Q = (candidates_QW[0] != NO_NEIGHBOUR).sum(axis=1) < wanted
        starved = np.flatnonzero(is_partial_Q & is_short_Q)
        if not len(starved):
            return candidates_QW[0], is_short_Q & (most < codebook.num_findable)
        nprobe = more_probes(nprobe, most)
        lists = codebook.nearest_lists(queries[starved], nprobe, threads)
        best = empty_topk(len(starved), width)
        found = scan_lists_of(queries[starved], lists, database, exclusion.rows(starved), best, threads, device)
        candidates_QW[0][starved] = found[0]
        is_partial_Q[starved] = nprobe < most


def mark_capped(nearest: TopK, is_capped_Q: BoolArray) -> None:
    """Write `CAPPED` as the distance of what some rows lack, in place of infinity."""
    ids_QK, distances_QK = nearest
    distances_QK[is_capped_Q[:, None] & (ids_QK == NO_NEIGHBOUR)] = CAPPED


@dataclass(frozen=True)
class ScannedDatabase:
    """The rows of some lists, in all parts."""

    parts: Sequence[JoinedPart]
    first_list: int
    sizes_L: Int64Array  # vectors in each of the lists
    space: CodeSpace

    @classmethod
    def of(
        cls, parts: Sequence[JoinedPart], codebook: Codebook, num_lists: int, first_list: int = 0
    ) -> ScannedDatabase:
        """Parts, of which these lists are read."""
        sizes_L = np.zeros(num_lists, np.int64)
        for part in parts:
            sizes_L += np.diff(part.offsets_L1)
        return cls(parts, first_list, sizes_L, CodeSpace(codebook.centre_D, codebook.metric == "squared_l2"))

    @property
    def num_allowed(self) -> int:
        """The number of rows that may be found."""
        return sum(part.num_allowed for part in self.parts)

    def numbered(self, lists_QA: Int32Array) -> Int32Array:
        """Lists by their numbers among those that are read, -1 for others."""
        numbers = lists_QA - self.first_list
        return np.where((numbers >= 0) & (numbers < len(self.sizes_L)), numbers, -1).astype(np.int32)


def scan_lists_of(
    queries: Float32Array,
    lists_QA: Int32Array,
    database: ScannedDatabase,
    exclusion: Exclusion,
    best: TopK,
    threads: int = 1,
    device: str = "cpu",
) -> TopK:
    """The W nearest of each query by (code distance, id), of `best` (Q, W each) and its lists that the database has.

    `best` may be written into. Lists of the first column are read first.
    """
    if not database.parts:
        return best
    numbers_QA = database.numbered(lists_QA)
    if device != "cpu":
        return merge_topk(
            [best, _scan_on_gpu(queries, numbers_QA, database, best[0].shape[1], exclusion, device)], best[0].shape[1]
        )
    return _scan_on_cpu(queries, numbers_QA, database, exclusion, best, threads)


def _scan_on_cpu(
    queries: Float32Array,
    lists_QA: Int32Array,
    database: ScannedDatabase,
    exclusion: Exclusion,
    best: TopK,
    threads: int,
) -> TopK:
    """`scan_lists_of` by the compiled scan; threads take ranges of queries, whose results are independent."""
    codes = _query_codes(queries, database.space, threads)
    scanned_parts = [_scanned(part, lists_QA, exclusion) for part in database.parts]

    def run(first: int, stop: int) -> None:
        for probes_QA in (lists_QA[:, :1], lists_QA[:, 1:]):
            groups = group_by_list(probes_QA, first, stop, len(database.sizes_L))
            scanned = ScannedQueries(groups, codes, exclusion.query_keys())
            for lists in scanned_parts:
                scan_lists(scanned, lists, database.space, best)

    run_ranges(run, _bounds_of_equal_work(database.sizes_L, lists_QA, threads), threads)
    return best


def _query_codes(queries: Float32Array, space: CodeSpace, threads: int) -> QueryCodes:
    codes = empty_query_codes(*queries.shape)
    run_rows(lambda first, stop: encode_queries(first, stop, queries, space, codes), len(queries), threads)
    return codes


def _scanned(joined: JoinedPart, lists_QA: Int32Array, exclusion: Exclusion) -> ScannedLists:
    """What a scan of some lists reads."""
    if isinstance(joined, ListRows):
        return joined.scanned(lists_QA, exclusion)
    arrays = joined.part.lists(lists_QA)
    return ScannedLists(
        offsets_L1=joined.offsets_L1,
        order_N=arrays.order_N,
        codes_ND=arrays.codes_ND,
        scales_N2=arrays.scales_N2,
        allowed_N=np.empty(0, dtype=np.bool_) if joined.allowed_N is None else joined.allowed_N,
        ids_N=joined.ids_N,
        keys=exclusion.columns(joined.keys, len(joined.ids_N), str(joined.part.folder)),
        steps_N=np.empty(0, dtype=np.int32),
    )


def _bounds_of_equal_work(sizes_L: Int64Array, lists_QA: Int32Array, threads: int) -> list[int]:
    """Bounds of ranges of queries, one a thread, that scan about as many vectors each."""
    scanned_Q = np.cumsum(np.where(lists_QA >= 0, sizes_L[lists_QA], 0).sum(axis=1))
    targets = np.linspace(0, scanned_Q[-1] if len(scanned_Q) else 0, threads + 1)[1:-1]
    return [0, *np.searchsorted(scanned_Q, targets).tolist(), len(lists_QA)]


def _scan_on_gpu(
    queries: Float32Array,
    lists_QA: Int32Array,
    database: ScannedDatabase,
    width: int,
    exclusion: Exclusion,
    device: str,
) -> TopK:
    """`scan_lists_of` on a device of PyTorch."""
    scanned_parts = [_scanned(part, lists_QA, exclusion) for part in database.parts]

    def columns_of(list_: int) -> ListColumns:
        return _concatenated([_columns(lists, list_, len(exclusion.kinds)) for lists in scanned_parts])

    keys = [exclusion.padded(kind) for kind in range(len(exclusion.kinds))]
    spans = [(int(lists.ids_N.min()), int(lists.ids_N.max()) + 1) for lists in scanned_parts if len(lists.ids_N)]
    ids = range(min((first for first, _ in spans), default=0), max((end for _, end in spans), default=0))
    intervals = exclusion.padded_intervals()
    return scan_on_device(queries, lists_QA, columns_of, keys, intervals, *database.space, width, device, ids)


def _columns(lists: ScannedLists, list_: int, num_kinds: int) -> ListColumns:
    """The allowed vectors of a list in one part."""
    start, stop = lists.offsets_L1[list_ : list_ + 2].tolist()
    positions = np.arange(start, stop)
    rows = lists.order_N[start:stop] if len(lists.order_N) else positions
    if len(lists.allowed_N):
        allowed = lists.allowed_N[rows]
        positions, rows = positions[allowed], rows[allowed]
    keys_JC = np.empty((num_kinds, len(rows)), np.int64)
    for kind in range(num_kinds):
        keys_JC[kind] = lists.keys[kind][rows]
    return ListColumns(lists.codes_ND[positions], lists.scales_N2[positions, 0], lists.ids_N[rows], keys_JC)


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
