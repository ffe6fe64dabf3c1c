"""Live parts, and the exact distances of the candidates that a search of them gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from retrodb.ann.codegen.distances import fixed_distances
from retrodb.ann.codegen.half_floats import gather_halves
from retrodb.ann.codegen.insertion import insert_candidates
from retrodb.ann.codegen.lookup import find_sorted, number_distinct
from retrodb.ann.exact import Block, run_rows
from retrodb.ann.exclusion import ExclusionKeys
from retrodb.ann.metric import check_vectors
from retrodb.ann.part import Part
from retrodb.ann.topk import TopK, empty_topk
from retrodb.errors import MismatchError
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array, VectorArray
from retrodb.format.entries import Metric

# Candidates that a thread measures at once. Their vectors take at most 32,768 * 384 dimensions * 4 bytes = 50 MB.
PAIRS = 32_768
BLOCK_ROWS = 16_384  # vectors read at once: 16,384 * 384 dimensions * 2 bytes (float16) = 13 MB


class SearchPart(Protocol):
    """What a search asks of a part. Only `allowed_N` is an array with a value for each row."""

    @property
    def part(self) -> Part: ...

    @property
    def max_allowed(self) -> int:
        """The number of rows that may be found, or a larger number."""

    @property
    def asks_candidates(self) -> bool:
        """Whether `are_allowed` is asked for the candidates of a search first, and `allowed_N` only if many are refused."""

    @property
    def allowed_N(self) -> BoolArray | None:
        """(N,) the rows that may be found; None: all."""

    @property
    def fetch(self) -> Callable[[Int64Array], VectorArray]:
        """Rows (any order) -> their vectors (n, D)."""

    def ids_of(self, rows: Int64Array) -> Int64Array:
        """The chunk id of each row."""

    def rows_of(self, ids: Int64Array) -> Int64Array:
        """The row of each chunk id; -1 for a chunk that is not in the part."""

    def are_allowed(self, ids: Int64Array) -> BoolArray:
        """Which ids of its rows may be found; not -1."""


@dataclass(frozen=True)
class LivePart:
    """A part as of a snapshot: the chunks that its rows are, which of them are allowed, and where their vectors are."""

    part: Part
    ids_N: Int64Array  # chunk ids, ascending
    fetch: Callable[[Int64Array], VectorArray]  # rows (any order) -> their vectors (n, D)
    allowed_N: BoolArray | None = None  # live, and within the filter; None: all
    keys: Mapping[str, ExclusionKeys] = field(default_factory=dict)  # exclusion keys by kind, (N,) each

    def __post_init__(self) -> None:
        lengths = {len(self.ids_N), self.part.meta.rows, *map(len, self.keys.values())}
        if self.allowed_N is not None:
            lengths.add(len(self.allowed_N))
        if len(lengths) > 1:
            message = f"an index part of {self.part.meta.rows} rows was given ids, keys or a mask of another number"
            raise MismatchError(
                message, where=str(self.part.folder), remedy="Run 'retrodb index', which covers new vectors"
            )

    @property
    def num_allowed(self) -> int:
        return len(self.ids_N) if self.allowed_N is None else int(np.count_nonzero(self.allowed_N))

    @property
    def offsets_L1(self) -> Int64Array:
        """Where each list begins and the last ends among the rows of the part in list order."""
        return self.part.offsets_L1

    @property
    def max_allowed(self) -> int:
        return self.num_allowed

    @property
    def asks_candidates(self) -> bool:
        return False

    def ids_of(self, rows: Int64Array) -> Int64Array:
        return self.ids_N[rows]

    def rows_of(self, ids: Int64Array) -> Int64Array:
        return find_sorted(self.ids_N, ids)

    def are_allowed(self, ids: Int64Array) -> BoolArray:
        rows = self.rows_of(ids)
        return (rows >= 0) if self.allowed_N is None else (rows >= 0) & self.allowed_N[rows]

    def blocks(self) -> Iterator[Block]:
        """All rows that are allowed, for `exact_topk`. Vectors of others are not read."""
        for start in range(0, len(self.ids_N), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(self.ids_N)))
            if self.allowed_N is not None:
                rows = rows[self.allowed_N[rows]]
            if len(rows):
                keys = {kind: array[rows] for kind, array in self.keys.items()}
                yield Block(self.ids_N[rows], self.fetch(rows), None, keys)


def rerank(
    queries_QD: Float32Array, ids_QW: Int64Array, parts: Sequence[SearchPart], k: int, metric: Metric, threads: int = 1
) -> TopK:
    """The k nearest of each query's candidates (-1: none) by the exact distance, ties by smaller id.

    Queries near each other share candidates, which are then read once.
    """

    def measure(queries: Float32Array, ids_QW: Int64Array, distances_QW: Float32Array, buffer: Float32Array) -> None:
        for part in parts:
            _measure(queries, part.rows_of(ids_QW), part.fetch, metric, distances_QW, buffer)

    return _nearest_measured(queries_QD, ids_QW, k, threads, measure)


def rerank_by_id(
    queries_QD: Float32Array,
    ids_QW: Int64Array,
    fetch: Callable[[Int64Array], VectorArray],
    k: int,
    metric: Metric,
    threads: int = 1,
) -> TopK:
    """`rerank` where the vectors are read by chunk id.

    Args:
        fetch: chunk ids (any order) -> their vectors (n, D).
    """

    def measure(queries: Float32Array, ids_QW: Int64Array, distances_QW: Float32Array, buffer: Float32Array) -> None:
        _measure(queries, ids_QW.copy(), fetch, metric, distances_QW, buffer)

    return _nearest_measured(queries_QD, ids_QW, k, threads, measure)


def _nearest_measured(
    queries_QD: Float32Array,
    ids_QW: Int64Array,
    k: int,
    threads: int,
    measure: Callable[[Float32Array, Int64Array, Float32Array, Float32Array], None],
) -> TopK:
    """The k nearest candidates of each query, by distances that `measure` fills in for some queries at a time."""
    ids_QK, distances_QK = empty_topk(len(ids_QW), k)
    step = max(1, PAIRS // max(1, ids_QW.shape[1]))

    def run(first: int, stop: int) -> None:
        buffer = np.empty((min(PAIRS, ids_QW[first:stop].size), queries_QD.shape[1]), dtype=np.float32)
        for start in range(first, stop, step):
            rows = slice(start, min(start + step, stop))
            distances_QW = np.full(ids_QW[rows].shape, np.inf, dtype=np.float32)
            measure(queries_QD[rows], ids_QW[rows], distances_QW, buffer)
            insert_candidates((ids_QW[rows], distances_QW), (ids_QK[rows], distances_QK[rows]))

    run_rows(run, len(ids_QW), threads)
    return ids_QK, distances_QK


def gather(
    vectors_ND: VectorArray, rows_R: Int64Array, dim: int, where: str, out_RD: Float32Array | None = None
) -> Float32Array:
    """Some rows as float32, in `out_RD` where that is given: the memory of a new array costs more than the conversion.

    Raises:
        MismatchError: another dimension.
        InputError: NaN or infinity; names the row.
    """
    if vectors_ND.dtype != np.float16 or vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
        return check_vectors(vectors_ND, dim, where=where)[rows_R]
    out_RD = np.empty((len(rows_R), dim), dtype=np.float32) if out_RD is None else out_RD[: len(rows_R)]
    bad = gather_halves(np.asarray(vectors_ND).view(np.int16), rows_R, out_RD)
    if bad >= 0:
        check_vectors(vectors_ND[rows_R[bad]][None], dim, int(rows_R[bad]), where)  # raises and names the row
    return out_RD


def _measure(
    queries: Float32Array,
    rows_QW: Int64Array,
    fetch: Callable[[Int64Array], VectorArray],
    metric: Metric,
    distances_QW: Float32Array,
    buffer: Float32Array,
) -> None:
    """Fills in the distances of the candidates, by the rows that have their vectors (-1: none); overwrites these rows."""
    rows_U = number_distinct(rows_QW)
    if not len(rows_U):
        return
    vectors_UD = gather(fetch(rows_U), np.arange(len(rows_U)), queries.shape[1], "stored vectors", buffer)
    fixed_distances(queries, rows_QW, vectors_UD, metric == "squared_l2", distances_QW)
