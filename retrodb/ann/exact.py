"""The exact k nearest by one streamed product, bit for bit the same for any block size and thread count.

A BLAS product estimates; its bits depend on the batch's shape. So the estimate only rules out what is certainly too
far (the error bound below), and what remains is measured by the one fixed-order kernel, ties by id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from retrodb.ann import kernels
from retrodb.ann.exclusion import Exclusion, ExclusionKeys
from retrodb.ann.metric import Metric, check_metric, check_vectors
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array, VectorArray

BLOCK_ROWS = 16_384  # database rows a product; with 1,024 queries the estimates take 64 MiB
BLOCK_QUERIES = 1_024


@dataclass(frozen=True)
class Block:
    """Database rows that belong together."""

    ids_N: Int64Array
    vectors_ND: VectorArray
    allowed_N: BoolArray | None = None  # which rows may be found; None: all
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
        best: results so far, (Q, k) each, which are merged into in place and given back; only what is nearer enters.

    Raises:
        MismatchError: dimensions that differ, or exclusion keys that are missing.
        InputError: NaN or infinity; names the row.
    """
    check_metric(metric)
    queries = check_vectors(queries_QD, queries_QD.shape[-1], where="queries")
    exclusion = exclusion or Exclusion.of(len(queries))
    ids_QK, distances_QK = best or empty_topk(len(queries), k)
    for block in _pieces(blocks):
        vectors = check_vectors(block.vectors_ND, queries.shape[1], int(block.ids_N[0]), "database vectors")
        keys_JC = exclusion.stack(block.keys, len(vectors))
        for start in range(0, len(queries), BLOCK_QUERIES):
            part = slice(start, start + BLOCK_QUERIES)
            rows = np.arange(len(queries))[part]
            own = exclusion.rows(rows) if exclusion.kinds else Exclusion.of(len(rows))
            nearest = distances_QK[part], ids_QK[part]
            _merge_block(queries[part], vectors, block.ids_N, keys_JC, own, metric == "squared_l2", nearest, threads)
    return ids_QK, distances_QK


@dataclass(frozen=True)
class FixedRows:
    """Few rows that are asked again and again, such as centroids: checked and measured once."""

    vectors_CD: Float32Array
    ids_C: Int64Array
    lengths_C: Float32Array

    @classmethod
    def of(cls, vectors_CD: Float32Array) -> FixedRows:
        """Rows whose ids are their numbers."""
        return cls(vectors_CD, np.arange(len(vectors_CD)), np.linalg.norm(vectors_CD, axis=1))

    def nearest(self, queries: Float32Array, k: int, metric: Metric, threads: int = 1) -> Int64Array:
        """The ids that `exact_topk` gives."""
        ids_QK, distances_QK = empty_topk(len(queries), k)
        keys_JC = np.empty((0, len(self.ids_C)), dtype=np.int64)
        for start in range(0, len(queries), BLOCK_QUERIES):
            part = slice(start, start + BLOCK_QUERIES)
            best = distances_QK[part], ids_QK[part]
            none, is_l2 = Exclusion.of(len(ids_QK[part])), metric == "squared_l2"
            rows = self.vectors_CD, self.ids_C, keys_JC
            _merge_block(queries[part], *rows, none, is_l2, best, threads, self.lengths_C)
        return ids_QK


def _pieces(blocks: VectorArray | Iterable[Block]) -> Iterator[Block]:
    """At most BLOCK_ROWS allowed rows at a time."""
    if isinstance(blocks, np.ndarray):
        blocks = [Block(np.arange(len(blocks)), blocks)]
    for block in blocks:
        for start in range(0, len(block.ids_N), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            keys = {kind: array[part] for kind, array in block.keys.items()}
            piece = Block(block.ids_N[part], block.vectors_ND[part], None, keys)
            if block.allowed_N is not None:
                allowed = block.allowed_N[part]
                keys = {kind: array[allowed] for kind, array in keys.items()}
                piece = Block(piece.ids_N[allowed], piece.vectors_ND[allowed], None, keys)
            if len(piece.ids_N):
                yield piece


def _merge_block(
    queries: Float32Array,
    vectors: Float32Array,
    ids_C: Int64Array,
    keys_JC: Int64Array,
    exclusion: Exclusion,
    is_l2: bool,
    best: tuple[Float32Array, Float32Array | Int64Array],
    threads: int,
    lengths_C: Float32Array | None = None,
) -> None:
    estimates_QC, errors_Q = _estimate(queries, vectors, is_l2, lengths_C)
    masks = keys_JC, exclusion.offsets_JQ1, exclusion.keys_M
    run_rows(
        lambda first, stop: kernels.insert_exact(
            first,
            stop,
            estimates_QC,
            errors_Q,
            queries,
            vectors,
            ids_C,
            *masks,
            is_l2,
            *best,  # type: ignore[arg-type]
        ),
        len(queries),
        threads,
    )


def _estimate(
    queries: Float32Array, vectors: Float32Array, is_l2: bool, lengths_C: Float32Array | None
) -> tuple[Float32Array, Float32Array]:
    """Distances by a BLAS product, and how far each query's may be from the fixed-order kernel's."""
    estimates: Float32Array = queries @ vectors.T
    vector_norms = np.linalg.norm(vectors, axis=1) if lengths_C is None else lengths_C
    errors_Q = estimate_error(queries, float(vector_norms.max()), is_l2)
    if not is_l2:
        np.negative(estimates, out=estimates)
        return estimates, errors_Q
    estimates *= -2
    estimates += (np.linalg.norm(queries, axis=1) ** 2)[:, None]
    estimates += (vector_norms**2)[None, :]
    return estimates, errors_Q


def estimate_error(queries: Float32Array, longest: float, is_l2: bool) -> Float32Array:
    """(Q,) how far distances to vectors of at most this length may be from the fixed-order kernel's, summed in any order.

    A float32 sum of D products in any order is within D * 2^-24 * |q| * |v| (1 + o(1)) of the truth (Higham 2002,
    section 3.1), and so is the kernel's; in the squared form |q| + |v| squared takes the place of |q| |v|, with three
    such sums. Eight extra terms and a factor of 4 cover the additions.
    """
    unit = 4 * (queries.shape[1] + 8) * 2.0**-24
    query_norms = np.linalg.norm(queries, axis=1)
    errors_Q = (query_norms + longest) ** 2 if is_l2 else query_norms * longest
    return np.asarray(unit * errors_Q, dtype=np.float32)


def run_rows(work: Callable[[int, int], None], num_rows: int, threads: int) -> None:
    """Calls `work(first, stop)` over equal ranges of rows; kernels release the GIL, so threads run at once."""
    if threads == 1:
        return work(0, num_rows)
    bounds = np.linspace(0, num_rows, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, *pair) for pair in pairwise(bounds)]:
            done.result()
