"""The neighbour join compared with FAISS: every vector's k nearest, own document excluded, at equal measured recall.

The effort of each method (lists, or efSearch) is raised until it reaches the recall, measured against the exact product on a
sample of the same queries. Then all run in turns for some rounds, and the best round of each counts: on a machine with other work
the ratios are more stable than the rates. There are two tables: with stored list ids on both sides (FAISS: `search_preassigned`),
and with the coarse assignment included on both. Methods that are much slower run on a part of the queries.

    python benchmarks/bench_neighbours.py                                  # synthetic, two minutes on one core
    python benchmarks/bench_neighbours.py --rows 1000000 --queries 50000 --lists 8192
    python benchmarks/bench_neighbours.py --vectors minilm.npy --documents documents.npy --lists 2048 --threads 1 2
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np
import torch
from faiss.contrib.big_batch_search import big_batch_search
from threadpoolctl import threadpool_limits

from retrodb.ann.codegen.code_product import PANEL, ROWS, PanelColumns, multiply
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.join import join_block
from retrodb.ann.part import build_part, open_part
from retrodb.ann.recall_curve import recall_at_k, recall_curve
from retrodb.ann.rerank import LivePart, rerank
from retrodb.ann.training import train
from retrodb.bench.machine import gemm_gflops, timed

Nearest = tuple[np.ndarray, np.ndarray]  # ids and distances (Q, k)
METRIC = "inner_product"
NEAREST_LISTS = 128  # that are known of each query, by default


def mixture(rows: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit float16 vectors: topics of power-law sizes, documents of 8 chunks within one topic, 10% near-duplicates."""
    random = np.random.default_rng(seed)
    num_topics = max(16, rows // 250)
    weights = np.arange(1, num_topics + 1) ** -0.8
    topics = random.standard_normal((num_topics, dim)).astype(np.float32)
    documents = np.arange(rows) // 8
    topic_of_document = random.choice(num_topics, rows // 8 + 1, p=weights / weights.sum())
    vectors = np.empty((rows, dim), dtype=np.float16)
    for start in range(0, rows, 65_536):
        of_block = documents[start : start + 65_536]
        num_rows = len(of_block)
        block = topics[topic_of_document[of_block]] + random.standard_normal((num_rows, dim), dtype=np.float32)
        copies = np.flatnonzero(random.random(num_rows) < 0.1)
        noise = 0.2 * random.standard_normal((len(copies), dim), dtype=np.float32)
        block[copies] = block[random.integers(0, num_rows, len(copies))] + noise
        vectors[start : start + num_rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors, documents


@numba.njit(nogil=True)
def _codes_loop(queries: Any, rows: Any, columns: PanelColumns, ones: Any, out: Any, repeats: int) -> None:
    for _ in range(repeats):
        for panel in range(2):
            multiply(queries, rows, columns, panel, ones, ones, out)


def code_gops(dim: int = 384) -> float:
    """The rate of products of 6-bit codes in the first-level cache, best of five: the maximum for the join."""
    queries = np.ones((ROWS, dim), np.uint8)
    columns = PanelColumns(np.ones(2 * PANEL * dim, np.int8), np.zeros((3, 2 * PANEL), np.float32))
    ones, out = -np.ones(ROWS, np.float32), np.empty((ROWS, PANEL), np.float32)
    _codes_loop(queries, np.arange(ROWS), columns, ones, out, 1)
    repeats = 20_000
    run = lambda: _codes_loop(queries, np.arange(ROWS), columns, ones, out, repeats)  # noqa: E731
    return max(4e-9 * repeats * ROWS * PANEL * dim / timed(run)[1] for _ in range(5))


def set_threads(threads: int) -> None:
    """Set the threads of FAISS, PyTorch, and the BLAS of NumPy."""
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")  # as long as the process lives


@dataclass(frozen=True)
class Method:
    """One way to join."""

    name: str
    run: Callable[[int, bool, np.ndarray], Nearest]  # effort, whether list ids are stored, query rows
    fraction: float = 1.0  # of the queries that it is timed on
    has_lists: bool = True  # whether it can use stored list ids
    built_s: float = 0.0  # counted in the second table, because HNSW has no other assignment
    top: int = NEAREST_LISTS  # maximum effort


class Bench:
    """One data set with one codebook, the exact neighbours of a sample, and every method to search it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.k = options, options.k
        self.threads = 1
        if options.vectors:
            self.vectors = np.load(options.vectors, mmap_mode="r", allow_pickle=False)[: options.rows]
            rows = len(self.vectors)
            self.documents = np.load(options.documents)[:rows] if options.documents else np.arange(rows)
        else:
            self.vectors, self.documents = mixture(options.rows, options.dim, options.seed)
        random = np.random.default_rng(options.seed)
        max_threads = max(options.threads)
        sample = np.sort(random.choice(len(self.vectors), min(len(self.vectors), 64 * options.lists), replace=False))
        self.codebook = train(self.vectors[sample], f"IVF{options.lists},SQ8", options.seed, METRIC, max_threads)
        self.folder = Path(tempfile.mkdtemp())
        _, self.build_s = timed(lambda: build_part(self.vectors, self.codebook, self.folder, max_threads))
        part = open_part(self.folder)
        ids, keys = np.arange(len(self.vectors)), {"document": self.documents}
        self.live = LivePart(part, ids, self.vectors.__getitem__, None, keys)
        # Queries are a contiguous run in the order of lists, like the blocks of a whole join.
        count = min(options.queries, len(ids))
        self.rows = np.asarray(
            part.order_N[:: max(1, len(ids) // count)][:count] if options.spread else part.order_N[:count]
        )
        self.queries = self.vectors[self.rows]
        known = min(options.nearest_lists, self.codebook.num_lists)
        self.lists = self.codebook.nearest_lists(self.queries, known, max_threads)
        self.exclusion = Exclusion.of(len(self.rows), document=self.documents[self.rows])
        self.sample = np.sort(random.choice(len(self.rows), min(options.truth, len(self.rows)), replace=False))
        self.truth, self.exact_s = timed(lambda: self.exact(self.sample))

    def exact(self, rows: np.ndarray) -> Nearest:
        blocks = [Block(self.live.ids_N, self.vectors, None, dict(self.live.keys))]
        return exact_topk(self.queries[rows], blocks, self.k, METRIC, self.exclusion.rows(rows), self.threads)

    def scanned(self, nprobe: int) -> float:
        """Mean number of vectors in the lists of a query."""
        return float(np.diff(self.live.part.offsets_L1)[self.lists[:, :nprobe]].sum(axis=1).mean())

    def first_guess(self, target: float) -> int:
        sizes = np.diff(self.live.part.offsets_L1)
        true_lists = np.where(self.truth[0] >= 0, self.live.part.lists_N.whole()[self.truth[0]], -1)
        curve = recall_curve(self.lists[self.sample], true_lists, sizes)
        return next((point.nprobe for point in curve if point.recall.mean >= target), curve[-1].nprobe)

    def join(self, nprobe: int, stored: bool, rows: np.ndarray) -> Nearest:
        lists = self.lists[rows] if stored else None
        exclusion = self.exclusion.rows(rows)
        return join_block(
            self.queries[rows], lists, [self.live], self.codebook, self.k, nprobe, exclusion, threads=self.threads
        )

    def finished(self, rows: np.ndarray, ids: np.ndarray) -> Nearest:
        """The exact rerank that all methods have in common, without the own document."""
        is_own = self.documents[np.maximum(ids, 0)] == self.documents[self.rows[rows]][:, None]
        queries = self.queries[rows].astype(np.float32)
        return rerank(queries, np.where(is_own, -1, ids), [self.live], self.k, METRIC, self.threads)

    def width(self, codes: str = "Flat") -> int:
        """Candidates to fetch: k, the chunks of the own document, and more when codes are coarse."""
        sizes = np.bincount(self.documents)[self.documents[self.rows]]
        own_chunks = int(np.clip(np.quantile(sizes, 0.99), 8, 256))  # with fewer no number of lists reaches the recall
        return self.k + own_chunks + (100 if "RaBitQ" in codes else 32 if "PQ" in codes else 8)

    def preassigned(self, rows: np.ndarray, nprobe: int, with_distances: bool) -> tuple[np.ndarray, np.ndarray | None]:
        lists = self.lists[rows, :nprobe].astype(np.int64)
        if not with_distances:
            return lists, None
        queries = self.queries[rows].astype(np.float32)
        return lists, np.einsum("qd,qad->qa", queries, self.codebook.centroids_LD[lists], optimize=True)

    def query_major(self, codes: str) -> Method:
        index = self.faiss_index(codes)

        def run(nprobe: int, stored: bool, rows: np.ndarray) -> Nearest:
            index.nprobe = nprobe
            queries = self.queries[rows].astype(np.float32)
            if stored:
                lists, coarse = self.preassigned(rows, nprobe, with_distances=codes != "Flat")
                _, ids = index.search_preassigned(queries, self.width(codes), lists, coarse)
            else:
                _, ids = index.search(queries, self.width(codes))
            return self.finished(rows, ids)

        return Method(f"faiss IVF,{codes}", run, self.options.peer_fraction)

    def big_batch(self) -> Method:
        index = self.faiss_index("Flat")

        def run(nprobe: int, stored: bool, rows: np.ndarray) -> Nearest:
            index.nprobe = nprobe
            queries = self.queries[rows].astype(np.float32)
            arguments: dict[str, Any] = {}
            if stored:
                lists, _ = self.preassigned(rows, nprobe, with_distances=False)
                arguments = {"use_float16": False, "q_assign": lists.astype(np.int32)}
            arguments |= {"threaded": self.threads - 1, "computation_threads": self.threads}
            with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for every list
                _, ids = big_batch_search(index, queries, self.width(), **arguments)
            return self.finished(rows, ids)

        return Method("faiss big_batch_search", run)

    def hnsw(self) -> Method:
        index = faiss.IndexHNSWFlat(self.vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        _, built_s = timed(lambda: index.add(self.vectors.astype(np.float32)))

        def run(effort: int, stored: bool, rows: np.ndarray) -> Nearest:
            index.hnsw.efSearch = effort
            _, ids = index.search(self.queries[rows].astype(np.float32), self.width())
            return self.finished(rows, ids)

        return Method("faiss HNSW16", run, self.options.peer_fraction, False, built_s, top=1024)

    def faiss_index(self, codes: str) -> Any:
        index = faiss.index_factory(
            self.vectors.shape[1], f"IVF{self.options.lists},{codes}", faiss.METRIC_INNER_PRODUCT
        )
        index.quantizer.add(self.codebook.centroids_LD)
        set_threads(max(self.options.threads))
        index.train(self.vectors[:: max(1, len(self.vectors) // 40_000)].astype(np.float32))
        for start in range(0, len(self.vectors), 65_536):
            index.add(self.vectors[start : start + 65_536].astype(np.float32))
        return index

    def at_recall(self, method: Method, target: float) -> tuple[int, float]:
        """The smallest effort (within 10%) that reaches the recall, and the reached recall."""
        guess = self.first_guess(target)
        effort = max(1, int(0.9 * guess)) if method.has_lists else 16
        top = min(method.top, 4 * guess) if method.has_lists else method.top  # codes that need more are too coarse
        while True:
            reached = recall_at_k(*method.run(effort, method.has_lists, self.sample), *self.truth).mean
            if reached >= target or effort >= top:
                return effort, reached
            effort = min(top, max(effort + 1, int(1.1 * effort)))


def measured(bench: Bench, methods: list[Method], efforts: list[int], stored: bool) -> list[float]:
    """Vectors per second of each method, the best of some rounds in turn."""
    best = [0.0] * len(methods)
    for _ in range(bench.options.rounds):
        for number, (method, effort) in enumerate(zip(methods, efforts, strict=True)):
            rows = np.arange(max(1, int(method.fraction * len(bench.rows))))
            elapsed = timed(lambda m=method, e=effort, r=rows: m.run(e, stored and m.has_lists, r))[1]
            # HNSW is built for the whole database: the fraction of the queries counts.
            elapsed += 0 if stored else method.built_s * len(rows) / len(bench.vectors)
            best[number] = max(best[number], len(rows) / elapsed)
    return best


def report(bench: Bench, methods: list[Method], threads: int, target: float, peak: float) -> float:
    """Print both tables for one recall, and return the rate of the join with stored list ids."""
    set_threads(threads)
    bench.threads = threads
    reached = [bench.at_recall(method, target) for method in methods]
    efforts = [effort for effort, _ in reached]
    rates = [measured(bench, methods, efforts, stored) for stored in (True, False)]
    exact = len(bench.sample) / timed(lambda: bench.exact(bench.sample))[1]
    print(f"\nrecall {target}, threads {threads}; exact product {exact:,.0f}/s, ours/it {rates[0][0] / exact:.1f}")
    print(
        f"{'method':24} {'recall':>7} {'effort':>6} {'stored/s':>10} {'ours/it':>8} {'assigned/s':>10} {'ours/it':>8}"
    )
    for number, method in enumerate(methods):
        cells = " ".join(f"{rate[number]:10,.0f} {rate[0] / rate[number]:8.2f}" for rate in rates)
        print(f"{method.name:24} {reached[number][1]:7.3f} {efforts[number]:6} {cells}", flush=True)
    products = 2e-9 * bench.scanned(efforts[0]) * bench.vectors.shape[1] * rates[0][0]
    print(
        f"join: {products:.0f} GOP/s of products over its whole time, {products / (threads * peak):.0%} of the maximum"
    )
    return rates[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help="(N, D) float16 .npy; a synthetic mixture without it")
    parser.add_argument("--documents", type=Path, help="(N,) document number of each vector, .npy")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=40_000)
    parser.add_argument(
        "--peer-fraction", type=float, default=0.1, help="fraction of the queries for query-major peers"
    )
    parser.add_argument("--spread", action="store_true", help="take queries from all lists, not from a run of them")
    parser.add_argument("--truth", type=int, default=1_000, help="queries whose recall is measured")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--nearest-lists", type=int, default=NEAREST_LISTS, help="largest number of probed lists")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.90, 0.95])
    parser.add_argument("--codes", nargs="*", default=["Flat", "SQ8", "RaBitQfs", "PQ192x4fs"], help="FAISS peers")
    parser.add_argument("--no-hnsw", action="store_true", help="leave HNSW out, whose graph takes the longest to build")
    options = parser.parse_args()
    set_threads(1)
    gemm, peak = gemm_gflops(1024), code_gops()
    versions = {"faiss": faiss.__version__, "torch": torch.__version__, "numba": numba.__version__}
    print(json.dumps({"cpu": platform.processor(), "cores": os.cpu_count(), **versions, **vars(options)}, default=str))
    bench = Bench(options)
    print(
        f"{len(bench.vectors):,} vectors, {len(bench.rows):,} queries, build {len(bench.vectors) / bench.build_s:,.0f}/s"
    )
    methods = [
        Method("the join of retrodb", bench.join),
        bench.big_batch(),
        *(bench.query_major(codes) for codes in options.codes),
    ]
    if not options.no_hnsw:
        methods.append(bench.hnsw())
    bench.join(2, True, np.arange(100))  # compiles
    for target in options.recalls:
        rates = [report(bench, methods, threads, target, peak) for threads in options.threads]
        if len(rates) > 1:
            print(
                f"{options.threads[-1]} threads join {rates[-1] / rates[0]:.2f} times as fast as {options.threads[0]}"
            )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    set_threads(1)
    print(f"\nfloat32 product {gemm:.0f} GFLOP/s before, {gemm_gflops(1024):.0f} after; codes {peak:.0f} GOP/s")
    print(f"peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    main()
