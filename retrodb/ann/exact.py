"""The exact k nearest by one streamed product, bit for bit the same for any block size and thread count.

A BLAS product estimates; its bits depend on the batch's shape. So the estimate only rules out what is certainly too
far (the error bound below), and what remains is measured by the one distance kernel, ties by id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from retrodb.ann.codegen.exact_insertion import Columns, EstimatedDistances, insert_exact
from retrodb.ann.exclusion import Exclusion, ExclusionKeys
from retrodb.ann.metric import check_metric, check_vectors
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array, VectorArray
from retrodb.format.entries import Metric

# Rows of one product. The estimates of all threads together take 16,384 * 1,024 * 4 bytes (float32) = 64 MiB.
BLOCK_ROWS = 16_384  # of the database
BLOCK_QUERIES = 1_024  # divided by the threads


@dataclass(frozen=True)
class Block:
    """Database rows that are read together."""

    ids_N: Int64Array
    vectors_ND: VectorArray
    allowed_N: BoolArray | None = None  # rows that may be neighbours; None: all
    keys: Mapping[str, ExclusionKeys] = field(default_factory=dict)  # exclusion keys by kind, (N,) each


def exact_topk(
    queries_QD: VectorArray,
    blocks: VectorArray | Iterable[Block],
    k: int,
    metric: Metric,
    exclusion: Exclusion | None = None,
    threads: int = 1,
    best: TopK | None = None,
) -> TopK:
    """The k nearest allowed rows of every query, (ids_QK, distances_QK), nearest first, ties by smaller id.

    Args:
        blocks: one array, whose ids are its row numbers, or blocks of any sizes, each read once.
        best: results so far, (Q, k) each, which are merged into in place and returned; only what is nearer enters.

    Raises:
        MismatchError: dimensions that differ, or exclusion keys that are missing.
        InputError: NaN or infinity; names the row.
    """
    check_metric(metric)
    queries = check_vectors(queries_QD, queries_QD.shape[-1], where="queries")
    exclusion = exclusion or Exclusion.of(len(queries))
    best = best or empty_topk(len(queries), k)
    for block in _pieces(blocks):
        vectors = check_vectors(block.vectors_ND, queries.shape[1], int(block.ids_N[0]), "database vectors")
        columns = Columns(vectors, block.ids_N, exclusion.stack(block.keys, len(vectors)))
        lengths_C = np.linalg.norm(vectors, axis=1)
        _merge_block(queries, columns, lengths_C, exclusion, metric, best, threads)
    return best


@dataclass(frozen=True)
class FixedRows:
    """Few rows that many queries are compared with, such as centroids: checked and measured once."""

    columns: Columns
    lengths_C: Float32Array

    @classmethod
    def of(cls, vectors_CD: Float32Array, ids_C: Int64Array | None = None) -> FixedRows:
        """Rows with their ids, ascending; None: their numbers."""
        num_rows = len(vectors_CD)
        ids = np.arange(num_rows) if ids_C is None else ids_C
        columns = Columns(vectors_CD, ids, np.empty((0, num_rows), dtype=np.int64))
        return cls(columns, np.linalg.norm(vectors_CD, axis=1))

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return int(self.columns.vectors_CD.shape[1])

    def nearest(self, queries: Float32Array, k: int, metric: Metric, threads: int = 1) -> Int64Array:
        """The ids that `exact_topk` gives."""
        best = empty_topk(len(queries), k)
        self.merge_into(best, queries, metric, threads)
        return best[0]

    def merge_into(self, best: TopK, queries: Float32Array, metric: Metric, threads: int = 1) -> None:
        """Merges the rows into the best of some queries, in place."""
        _merge_block(queries, self.columns, self.lengths_C, Exclusion.of(len(queries)), metric, best, threads)

    def may_be_within(
        self, queries: Float32Array, bounds_Q: Float32Array, metric: Metric, threads: int = 1
    ) -> BoolArray:
        """(Q,) which queries may have a row at most as far as their bound: all that have, and few others."""
        is_within, most_rows = np.zeros(len(queries), dtype=np.bool_), -(-BLOCK_QUERIES // threads)

        def compare(first: int, stop: int) -> None:
            for start in range(first, stop, most_rows):
                rows = slice(start, min(start + most_rows, stop))
                distances_QC, errors_Q = _products(
                    queries[rows], self.columns.vectors_CD, self.lengths_C, metric == "squared_l2"
                )
                is_within[rows] = distances_QC.min(axis=1) - errors_Q <= bounds_Q[rows]

        run_rows(compare, len(queries), threads)
        return is_within


def _pieces(blocks: VectorArray | Iterable[Block]) -> Iterator[Block]:
    """At most BLOCK_ROWS allowed rows at a time."""
    if isinstance(blocks, np.ndarray):
        blocks = [Block(np.arange(len(blocks)), blocks)]
    for block in blocks:
        for start in range(0, len(block.ids_N), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            keys = {kind: array[rows] for kind, array in block.keys.items()}
            piece = Block(block.ids_N[rows], block.vectors_ND[rows], None, keys)
            if block.allowed_N is not None:
                allowed = block.allowed_N[rows]
                keys = {kind: array[allowed] for kind, array in keys.items()}
                piece = Block(piece.ids_N[allowed], piece.vectors_ND[allowed], None, keys)
            if len(piece.ids_N):
                yield piece


def _merge_block(
    queries_QD: Float32Array,
    columns: Columns,
    lengths_C: Float32Array,
    exclusion: Exclusion,
    metric: Metric,
    best: TopK,
    threads: int,
) -> None:
    """Merges a block of columns, whose vectors have these lengths, into the best of all queries."""
    is_l2, most_rows = metric == "squared_l2", -(-BLOCK_QUERIES // threads)

    def merge_rows(first: int, stop: int) -> None:
        for start in range(first, stop, most_rows):
            rows = slice(start, min(start + most_rows, stop))
            queries, best_of_rows = queries_QD[rows], (best[0][rows], best[1][rows])
            keys = exclusion.query_keys(rows.start, rows.stop)
            estimates = _estimate(queries, columns.vectors_CD, lengths_C, best[0].shape[1], is_l2)
            insert_exact(0, len(queries), queries, estimates, columns, keys, is_l2, best_of_rows)

    run_rows(merge_rows, len(queries_QD), threads)


def _estimate(
    queries: Float32Array, vectors: Float32Array, lengths_C: Float32Array, k: int, is_l2: bool
) -> EstimatedDistances:
    """`_products` for the best k."""
    return EstimatedDistances.of(*_products(queries, vectors, lengths_C, is_l2), k)


def _products(
    queries: Float32Array, vectors: Float32Array, lengths_C: Float32Array, is_l2: bool
) -> tuple[Float32Array, Float32Array]:
    """Distances (Q, C) by a BLAS product, and how far each query's (Q,) may be from those of the distance kernel."""
    distances_QC: Float32Array = queries @ vectors.T
    errors_Q = estimate_error(queries, float(lengths_C.max()), is_l2)
    if not is_l2:
        return np.negative(distances_QC, out=distances_QC), errors_Q
    distances_QC *= -2
    distances_QC += (np.linalg.norm(queries, axis=1) ** 2)[:, None]
    distances_QC += (lengths_C**2)[None, :]
    return distances_QC, errors_Q


def estimate_error(queries: Float32Array, longest: float, is_l2: bool) -> Float32Array:
    """(Q,) how far distances to vectors of at most this length may be from the kernel's, when summed in any order.

    A float32 sum of D products in any order is within D * 2^-24 * |q| * |v| (1 + o(1)) of the true sum (Higham 2002,
    section 3.1), and so is the kernel's. In the squared form (|q| + |v|)² replaces |q| |v|, with three such sums. Eight
    extra terms and a factor of 4 cover the additions.
    """
    unit = 4 * (queries.shape[1] + 8) * 2.0**-24
    query_norms = np.linalg.norm(queries, axis=1)
    errors_Q = (query_norms + longest) ** 2 if is_l2 else query_norms * longest
    return np.asarray(unit * errors_Q, dtype=np.float32)


def run_rows(work: Callable[[int, int], None], num_rows: int, threads: int) -> None:
    """Calls `work(first, stop)` over equal ranges of rows; kernels release the GIL, so threads run at the same time."""
    if threads == 1:
        return work(0, num_rows)
    bounds = np.linspace(0, num_rows, threads + 1).astype(int).tolist()
    run_ranges(work, bounds, threads)


def run_ranges(work: Callable[[int, int], None], bounds: list[int], threads: int) -> None:
    """Calls `work(first, stop)` in threads, for each pair of neighbouring bounds."""
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, *pair) for pair in pairwise(bounds)]:
            future.result()
