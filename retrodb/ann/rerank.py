"""Live parts, and the exact distances of the candidates that a search of them gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retrodb.ann import kernels
from retrodb.ann.exact import Block, run_rows
from retrodb.ann.exclusion import Keys
from retrodb.ann.metric import NO_NEIGHBOUR, BoolArray, FloatArray, Int64Array, Metric, Vectors, check_vectors
from retrodb.ann.part import Part
from retrodb.ann.topk import TopK, empty_topk
from retrodb.errors import MismatchError

PAIRS = 65_536  # candidates measured at once: 100 MB of float32 at 384 dimensions
SCAN_ROWS = 16_384


@dataclass(frozen=True)
class LivePart:
    """A part as of a snapshot: which chunks its rows are, which may be found, and where their vectors are."""

    part: Part
    ids_N: Int64Array  # chunk ids, ascending
    fetch: Callable[[Int64Array], Vectors]  # rows (any order) -> their vectors (n, D)
    allowed_N: BoolArray | None = None  # live, and within the filter; None: all
    keys: Mapping[str, Keys] = field(default_factory=dict)  # exclusion keys by kind, (N,) each

    def __post_init__(self) -> None:
        lengths = {len(self.ids_N), self.part.meta.rows, *map(len, self.keys.values())}
        if self.allowed_N is not None:
            lengths.add(len(self.allowed_N))
        if len(lengths) > 1:
            what = f"an index part of {self.part.meta.rows} rows was given ids, keys or a mask of another number"
            raise MismatchError(
                what, where=str(self.part.folder), remedy="Run 'retrodb index', which covers new vectors"
            )

    @property
    def num_allowed(self) -> int:
        return len(self.ids_N) if self.allowed_N is None else int(np.count_nonzero(self.allowed_N))

    def blocks(self) -> Iterator[Block]:
        """All rows, for `exact_topk`."""
        for start in range(0, len(self.ids_N), SCAN_ROWS):
            rows = slice(start, start + SCAN_ROWS)
            keys = {kind: array[rows] for kind, array in self.keys.items()}
            allowed = None if self.allowed_N is None else self.allowed_N[rows]
            ids = self.ids_N[rows]
            yield Block(ids, self.fetch(np.arange(start, start + len(ids))), allowed, keys)


def rerank(
    queries_QD: FloatArray, ids_QW: Int64Array, parts: Sequence[LivePart], k: int, metric: Metric, threads: int = 1
) -> TopK:
    """The k nearest of each query's candidates (-1: none) by the fixed-order distance, ties by smaller id."""
    distances_QW = np.full(ids_QW.shape, np.inf, dtype=np.float32)
    step = max(1, PAIRS // ids_QW.shape[1])
    for start in range(0, len(ids_QW), step):
        rows = slice(start, start + step)
        for part in parts:
            _measure(queries_QD[rows], ids_QW[rows], part, metric, distances_QW[rows], threads)
    ids_QK, distances_QK = empty_topk(len(ids_QW), k)
    kernels.insert_pairs(distances_QW, ids_QW, distances_QK, ids_QK)
    return ids_QK, distances_QK


def _measure(
    queries: FloatArray, ids_QW: Int64Array, part: LivePart, metric: Metric, distances_QW: FloatArray, threads: int
) -> None:
    """Fills in the distances of the candidates that are in this part."""
    if len(part.ids_N) == 0:
        return
    places = np.minimum(np.searchsorted(part.ids_N, ids_QW), len(part.ids_N) - 1)
    query_P, column_P = np.nonzero((part.ids_N[places] == ids_QW) & (ids_QW != NO_NEIGHBOUR))
    if len(query_P) == 0:
        return
    rows_U, which_P = np.unique(places[query_P, column_P], return_inverse=True)
    vectors_UD = check_vectors(part.fetch(rows_U), queries.shape[1], where="stored vectors")
    distances_P = np.empty(len(query_P), dtype=np.float32)
    run_rows(
        lambda first, stop: kernels.fixed_pair_distances(
            first, stop, queries, query_P, vectors_UD, which_P, metric == "squared_l2", distances_P
        ),
        len(query_P),
        threads,
    )
    distances_QW[query_P, column_P] = distances_P
