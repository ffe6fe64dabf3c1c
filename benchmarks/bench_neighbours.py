"""The neighbour join beside FAISS: every vector's k nearest, own document excluded, at equal measured recall.

Each method's probes are raised until it reaches the recall (measured against the exact product on a sample of the same
queries), then all run one after the other, and the table gives vectors joined per second and the ratio of ours to each.
Two tables: list ids stored beforehand on both sides, and coarse assignment included on both.

    python benchmarks/bench_neighbours.py                                  # synthetic, about two minutes
    python benchmarks/bench_neighbours.py --rows 1000000 --queries 100000 --lists 8192
    python benchmarks/bench_neighbours.py --vectors minilm.npy --documents documents.npy
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np
import torch

from retrodb.ann.codebook import train
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.join import join_block
from retrodb.ann.operating_point import choose_nprobe, recall_at_k, recall_curve
from retrodb.ann.part import build_part, open_part
from retrodb.ann.rerank import LivePart, rerank

Found = tuple[np.ndarray, np.ndarray]
METRIC = "inner_product"


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
        own = documents[start : start + 65_536]
        block = topics[topic_of_document[own]] + random.standard_normal((len(own), dim), dtype=np.float32)
        copies = np.flatnonzero(random.random(len(own)) < 0.1)
        noise = 0.2 * random.standard_normal((len(copies), dim), dtype=np.float32)
        block[copies] = block[random.integers(0, len(own), len(copies))] + noise
        vectors[start : start + len(own)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors, documents


def gemm_gflops(size: int = 1024) -> float:
    """The float32 product's rate now, best of five: a noisy machine shows here."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return max(2e-9 * size**3 / timed(lambda: a @ b)[1] for _ in range(5))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


class Bench:
    """One data set under one codebook, the exact truth of a sample, and every method's way to search it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.k = options, options.k
        if options.vectors:
            self.vectors = np.load(options.vectors, mmap_mode="r", allow_pickle=False)[: options.rows]
            rows = len(self.vectors)
            self.documents = np.load(options.documents)[:rows] if options.documents else np.arange(rows)
        else:
            self.vectors, self.documents = mixture(options.rows, options.dim, options.seed)
        random = np.random.default_rng(options.seed)
        sample = np.sort(random.choice(len(self.vectors), min(len(self.vectors), 64 * options.lists), replace=False))
        factory = f"IVF{options.lists},Flat"
        self.codebook = train(self.vectors[sample], factory, options.seed, METRIC, options.threads)
        self.folder = Path(tempfile.mkdtemp())
        _, self.build_s = timed(lambda: build_part(self.vectors, self.codebook, self.folder, 64, options.threads))
        part = open_part(self.folder)
        ids, keys = np.arange(len(self.vectors)), {"document": self.documents}
        self.live = LivePart(part, ids, self.vectors.__getitem__, None, keys)
        # Queries are a contiguous run in the order of lists, as the blocks of a whole join are.
        count = min(options.queries, len(ids))
        self.rows = part.order_N[:: max(1, len(ids) // count)][:count] if options.spread else part.order_N[:count]
        self.queries, self.lists = self.vectors[self.rows], part.lists_NA[self.rows]
        self.exclusion = Exclusion.of(len(self.rows), document=self.documents[self.rows])
        self.sample = np.sort(random.choice(len(self.rows), min(options.truth, len(self.rows)), replace=False))
        self.truth, self.exact_s = timed(
            lambda: exact_topk(
                self.queries[self.sample],
                [Block(ids, self.vectors, None, keys)],
                self.k,
                METRIC,
                self.exclusion.rows(self.sample),
                options.threads,
            )
        )

    def nprobe(self, target: float) -> int:
        sizes = np.diff(self.live.part.offsets_L1)
        true_lists = np.where(self.truth[0] >= 0, self.live.part.lists_NA[self.truth[0], 0], -1)
        curve = recall_curve(self.lists[self.sample], true_lists, sizes)
        return choose_nprobe(curve, target).nprobe

    def join(self, nprobe: int, stored: bool, rows: np.ndarray) -> Found:
        lists = self.lists[rows] if stored else None
        own = self.exclusion.rows(rows)
        threads = self.options.threads
        return join_block(self.queries[rows], lists, [self.live], self.codebook, self.k, nprobe, own, threads=threads)

    def faiss_search(self, index: Any, nprobe: int, stored: bool, rows: np.ndarray, refine: bool) -> Found:
        """Query-major, as people do it: fetch k + slack, drop the own document, and refine coarse codes."""
        index.nprobe = nprobe
        queries = self.queries[rows].astype(np.float32)
        width = self.k + 8 + (32 if refine else 8)
        if stored:
            lists = self.lists[rows, :nprobe].astype(np.int64)
            coarse = np.einsum("qd,qad->qa", queries, self.codebook.centroids_LD[lists]) if refine else None
            _, ids = index.search_preassigned(queries, width, lists, coarse)
        else:
            _, ids = index.search(queries, width)
        own = self.documents[np.maximum(ids, 0)] == self.documents[self.rows[rows]][:, None]
        return rerank(queries, np.where(own, -1, ids), [self.live], self.k, METRIC, self.options.threads)

    def faiss_index(self, codes: str) -> Any:
        index = faiss.index_factory(
            self.vectors.shape[1], f"IVF{self.options.lists},{codes}", faiss.METRIC_INNER_PRODUCT
        )
        index.quantizer.add(self.codebook.centroids_LD)
        vectors = self.vectors.astype(np.float32)
        index.train(vectors[:: max(1, len(vectors) // 40_000)])
        index.add(vectors)
        return index

    def at_recall(self, run: Callable[[int, bool, np.ndarray], Found], target: float) -> tuple[int, float]:
        """The least probes (within 10%) that reach the recall, and the recall reached."""
        nprobe = max(1, int(0.8 * self.nprobe(target)))
        while True:
            reached = recall_at_k(*run(nprobe, True, self.sample), *self.truth).mean
            if reached >= target or nprobe >= self.lists.shape[1]:
                return nprobe, reached
            nprobe = min(self.lists.shape[1], max(nprobe + 1, int(1.1 * nprobe)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help="(N, D) float16 .npy; else a synthetic mixture")
    parser.add_argument("--documents", type=Path, help="(N,) document number of each vector, .npy")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--spread", action="store_true", help="take queries from all lists, not a run of them")
    parser.add_argument("--truth", type=int, default=1_000, help="queries whose recall is measured")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--lists", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.90, 0.95])
    parser.add_argument("--codes", nargs="+", default=["Flat", "SQ8", "PQ96x4fs"], help="FAISS peers")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    gemm = gemm_gflops()
    bench = Bench(options)
    versions = {"faiss": faiss.__version__, "torch": torch.__version__, "numba": numba.__version__}
    print(json.dumps({"cpu": platform.processor(), "cores": os.cpu_count(), **versions, **vars(options)}, default=str))
    build, exact = len(bench.vectors) / bench.build_s, len(bench.sample) / bench.exact_s
    print(f"build {build:,.0f} vectors/s; exact product {exact:,.0f} queries/s")
    everything = np.arange(len(bench.rows))
    indexes = {codes: bench.faiss_index(codes) for codes in options.codes}
    print(
        f"{'method':22} {'recall':>7} {'nprobe':>6} {'stored/s':>10} {'ours/it':>8} {'assigned/s':>10} {'ours/it':>8}"
    )
    for target in options.recalls:
        methods: dict[str, Callable[[int, bool, np.ndarray], Found]] = {"retrodb join": bench.join}
        for codes, index in indexes.items():
            methods[f"faiss IVF{options.lists},{codes}"] = lambda nprobe, stored, rows, index=index, codes=codes: (
                bench.faiss_search(index, nprobe, stored, rows, codes != "Flat")
            )
        ours: list[float] = []
        for name, run in methods.items():
            nprobe, reached = bench.at_recall(run, target)
            run(nprobe, True, everything[:500])
            rates = [len(everything) / timed(lambda s=s: run(nprobe, s, everything))[1] for s in (True, False)]  # noqa: B023
            ours = ours or rates
            cells = " ".join(f"{rate:10,.0f} {own / rate:8.2f}" for rate, own in zip(rates, ours, strict=True))
            print(f"{name:22} {reached:7.3f} {nprobe:6} {cells}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"float32 product {gemm:.0f} GFLOP/s before, {gemm_gflops():.0f} after; peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
