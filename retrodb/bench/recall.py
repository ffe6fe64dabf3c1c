"""Recall of a search and its cost: first lists and vectors scanned, without timing, then a few timed points.

How it is measured: held-out queries from a seed; their exact neighbours from a scan in tasks, where all that are as near as the
k-th count; a 95% interval over documents for every recall; throughput of one batch and latency of single queries, each cold
(files dropped from the page cache) and warm; the rate of a matrix product before and after, which shows whether the machine
was busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from retrodb.ann.recall_curve import CurvePoint, RecallEstimate, recall_at_k, recall_curve
from retrodb.ann.rerank import LivePart
from retrodb.ann.search import search
from retrodb.ann.topk import TopK
from retrodb.bench.heldout import HeldOutQueries, held_out_queries
from retrodb.bench.machine import drop_from_page_cache, environment, gemm_gflops, timed
from retrodb.bench.true_neighbours import true_neighbours
from retrodb.errors import ConfigError, MissingStep, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import IndexEntry, StoredPoint
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import live_parts, parts_of
from retrodb.stages.index.operating_point import MAX_LISTS, OperatingPoint, store_point
from retrodb.stages.search.command import Searcher
from retrodb.view.view import View

TRUE_DEPTH = 30  # exact neighbours of a query: k, and those at the same distance as the k-th
TIMED_RECALLS = (0.9, 0.95, 0.99)
_LATENCY_QUERIES = 200  # timed one by one in each pass


@dataclass(frozen=True)
class Latency:
    """Seconds per query: quantiles over single queries."""

    p50_s: float
    p95_s: float
    p99_s: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Latency:
        """The quantiles of measured times."""
        return Latency(*(float(x) for x in np.quantile(seconds, [0.5, 0.95, 0.99])))


@dataclass(frozen=True)
class TimedPoint:
    """Search with one number of lists."""

    nprobe: int
    recall: RecallEstimate  # of the whole search: lists, codes and exact rerank
    vectors_scanned: float  # mean per query
    cold_queries_per_s: float  # one batch of all queries
    warm_queries_per_s: float
    cold_latency: Latency
    warm_latency: Latency


@dataclass(frozen=True)
class RecallReport:
    """Everything that was measured, and the setting."""

    database: str
    snapshot: int  # that was measured
    space: str
    factory: str
    metric: str
    num_lists: int
    num_parts: int
    num_vectors: int  # that can be found
    queries: str  # where they come from
    num_queries: int
    num_query_documents: int  # that the queries are of: the intervals of recall are over them
    k: int
    true_depth: int
    seed: int
    index_bytes_per_vector: float  # search codes, join codes, lists and scales
    stored_bytes_per_vector: float  # the vectors themselves
    curve: tuple[CurvePoint, ...]  # recall of the scan alone
    points: tuple[TimedPoint, ...]
    drops_page_cache: bool  # whether the system can drop files before a cold pass
    stored_target: float | None  # recall whose operating point was stored
    stored_nprobe: int | None
    gemm_before_gflops: float
    gemm_after_gflops: float
    environment: dict[str, str]


def run_bench_recall(
    context: Context,
    *,
    space: str | None = None,
    queries: str | None = None,
    k: int = 10,
    target_recall: float | None = None,
    seed: int = 0,
) -> RecallReport:
    """Measure search in a space. With a target, store the smallest number of lists that reaches it.

    Args:
        queries: a file of texts or vectors, or the name of a query set; None takes the held-out documents, or own ones that
            are hidden meanwhile.

    Raises:
        MissingStep: when the space is not embedded or not indexed, or there are no queries.
        UsageError: for an invalid k, recall or query set.
        ConfigError: when not even all lists reach the target.
    """
    if k < 1:
        raise UsageError(f"k of {k}", remedy="Give at least 1.")
    if target_recall is not None and not 0 < target_recall <= 1:
        raise UsageError(f"recall of {target_recall}", remedy="Give a fraction above 0 and up to 1.")
    view, threads = context.view(), context.num_workers
    searcher = Searcher.open(view, space=space)
    before = gemm_gflops()
    with context.progress.stage("bench recall", 2 + len(TIMED_RECALLS), "") as bar:
        trial = _Trial.of(context, searcher, held_out_queries(view, searcher.space, queries, seed), k)
        bar.advance(1)
        stored = None if target_recall is None else trial.point_reaching(target_recall)
        bar.advance(1)
        points = []
        for nprobe in trial.probes_to_time(stored):
            points.append(_time(trial, nprobe, threads))
            bar.advance(1)
    if stored is not None and target_recall is not None:
        store_point(context, searcher.space, StoredPoint(target_recall, stored.nprobe, stored.recall, k))
    rows, index_bytes, stored_bytes = _sizes(view, searcher.space)
    return RecallReport(
        database=view.storage.url,
        snapshot=view.snapshot.number,
        space=searcher.space,
        factory=view.snapshot.existing(IndexEntry, searcher.space).factory,
        metric=searcher.codebook.metric,
        num_lists=searcher.codebook.num_lists,
        num_parts=len(searcher.parts),
        num_vectors=searcher.num_chunks,
        queries=trial.held_out.name,
        num_queries=len(trial.held_out.vectors),
        num_query_documents=len(np.unique(trial.held_out.groups)),
        k=k,
        true_depth=trial.truth[0].shape[1],
        seed=seed,
        index_bytes_per_vector=index_bytes / rows,
        stored_bytes_per_vector=stored_bytes / rows,
        curve=tuple(trial.curve),
        points=tuple(points),
        drops_page_cache=drop_from_page_cache(()),
        stored_target=target_recall,
        stored_nprobe=stored.nprobe if stored else None,
        gemm_before_gflops=before,
        gemm_after_gflops=gemm_gflops(),
        environment=environment(threads),
    )


@dataclass(frozen=True)
class _Trial:
    """Queries with their true neighbours, and the index that is measured."""

    searcher: Searcher
    held_out: HeldOutQueries
    parts: list[LivePart]  # without the hidden documents
    k: int
    truth: TopK  # (Q, T): k, and those at the same distance as the k-th
    curve: list[CurvePoint]
    threads: int

    @staticmethod
    def of(context: Context, searcher: Searcher, held_out: HeldOutQueries, k: int) -> _Trial:
        codebook, view, threads = searcher.codebook, searcher.view, context.num_workers
        lists = codebook.nearest_lists(held_out.vectors, min(codebook.num_lists, MAX_LISTS), threads)
        truth, sizes = true_neighbours(context, view, searcher.space, held_out, max(k, TRUE_DEPTH), codebook.num_lists)
        ids, distances = truth.ids_QK, truth.distances_QK
        if not (ids >= 0).any():
            raise MissingStep(
                "no chunk can be found, so there is no recall", remedy="Ingest more, or name queries with --queries."
            )
        num_true = np.maximum((ids[:, :k] >= 0).sum(axis=1), 1)
        kth = distances[np.arange(len(ids)), num_true - 1]
        is_true = distances <= kth[:, None]
        true_lists = np.where(is_true, truth.lists_QK, -1).astype(np.int32)
        curve = recall_curve(lists, true_lists, sizes, k, held_out.groups)
        parts = [_without(part, held_out.masked, view) for part in live_parts(view, searcher.space)]
        return _Trial(searcher, held_out, parts, k, (np.where(is_true, ids, -1), distances), curve, threads)

    def recall(self, nprobe: int) -> RecallEstimate:
        """Recall of the search itself."""
        codebook, threads = self.searcher.codebook, self.threads
        ids, distances = search(self.held_out.vectors, self.parts, codebook, self.k, nprobe, threads=threads)
        return recall_at_k(ids, distances, *self.truth, self.held_out.groups)

    def point_reaching(self, target: float) -> OperatingPoint:
        """The smallest number of lists, starting from that of the curve, with which the search reaches a recall."""
        num_lists = self.searcher.codebook.num_lists
        nprobe = self._on_curve(target)
        while (reached := self.recall(nprobe).mean) < target and nprobe < num_lists:
            nprobe = min(num_lists, nprobe + max(1, nprobe // 8))
        if reached < target:
            raise ConfigError(
                f"recall {target} is not reached: all {num_lists} lists give {reached:.4f}",
                remedy="Give a lower target, or index again with more bytes per vector: 'retrodb index --retrain'.",
            )
        return OperatingPoint(nprobe, round(reached, 4))

    def probes_to_time(self, stored: OperatingPoint | None) -> list[int]:
        """The numbers of lists for the recalls that reports show. The stored one replaces the nearest of them."""
        probes = sorted({self._on_curve(recall) for recall in TIMED_RECALLS})
        if stored is not None and stored.nprobe not in probes:
            nearest = min(range(len(probes)), key=lambda i: abs(probes[i] - stored.nprobe))
            probes[nearest] = stored.nprobe
        return probes

    def _on_curve(self, recall: float) -> int:
        return next((point.nprobe for point in self.curve if point.recall.mean >= recall), self.curve[-1].nprobe)


def _without(part: LivePart, documents: Int64Array, view: View) -> LivePart:
    """A part without some documents."""
    if not len(documents):
        return part
    allowed = ~np.isin(view.chunks.document_ids(part.ids_N), documents)
    return replace(part, allowed_N=allowed if part.allowed_N is None else allowed & part.allowed_N)


def _time(trial: _Trial, nprobe: int, threads: int) -> TimedPoint:
    """Throughput and latency with the whole index, without hidden documents."""
    queries = np.asarray(trial.held_out.vectors, dtype=np.float32)
    singles = [queries[i : i + 1] for i in range(min(len(queries), _LATENCY_QUERIES))]

    def search_time(searcher: Searcher, vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
        return timed(partial(searcher.arrays, vectors, trial.k, nprobe=nprobe, threads=threads))[1]

    searcher = _cold(trial.searcher)
    cold_singles = [search_time(searcher, query) for query in singles]
    warm_singles = [search_time(searcher, query) for query in singles]
    searcher = _cold(trial.searcher)
    cold, warm = search_time(searcher, queries), min(search_time(searcher, queries), search_time(searcher, queries))
    return TimedPoint(
        nprobe=nprobe,
        recall=trial.recall(nprobe),
        vectors_scanned=trial.curve[min(nprobe, len(trial.curve)) - 1].scanned,
        cold_queries_per_s=len(queries) / cold,
        warm_queries_per_s=len(queries) / warm,
        cold_latency=Latency.of(cold_singles),
        warm_latency=Latency.of(warm_singles),
    )


def _cold(warm: Searcher) -> Searcher:
    """The same index, opened again after its files were dropped from the page cache."""
    view, space = warm.view, warm.space
    records = [record for part in parts_of(view, space) for record in part.records]
    drop_from_page_cache(view.files.open(record) for record in [*records, *view.manifest.files("vectors", space)])
    return Searcher.open(View(view.storage, view.settings, view.snapshot), space=space)


def _sizes(view: View, space: str) -> tuple[int, int, int]:
    """Rows of the index parts, the bytes of their files, and the bytes of the space's vectors."""
    parts = parts_of(view, space)
    index_bytes = sum(record.digest.size_bytes for part in parts for record in part.records)
    stored_bytes = sum(record.digest.size_bytes for record in view.manifest.files("vectors", space))
    return max(1, sum(part.num_rows for part in parts)), index_bytes, stored_bytes
