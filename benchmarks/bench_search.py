"""Search of single queries and of batches by retrodb, plain FAISS with the same factory, usearch and hnswlib, at equal recall.

Queries are held out: their documents are not in the index. The effort of every method is raised until it reaches the recall
(measured against the exact product). Then latency (one query per call) and throughput (all in one call) are measured on one
thread.

    python benchmarks/bench_search.py [--rows 60000] [--factory IVF512,SQ8] [--recall 0.95] [--out FILE]
    python benchmarks/bench_search.py --rows 1000000 --factory IVF8192,RaBitQfs
    python benchmarks/bench_search.py --shards 64 --rows 1000000 --dim 64 --factory IVF1024,SQ8 [--probes 32 128] [--folder DIR]

With `--shards`, a database of made-up documents is searched next to one FAISS index of the same lists: `search_in_shards.py`.
usearch and hnswlib are reported as skipped when they are not installed.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
from bench_neighbours import mixture, set_threads
from search_in_shards import report_shards

from retrodb.ann.codebook import Codebook, choose_factory, load_codebook, sample_size
from retrodb.ann.exact import exact_topk
from retrodb.ann.faiss_file import write_faiss_file
from retrodb.ann.merge_parts import rows_by_list
from retrodb.ann.part import build_part, open_part
from retrodb.ann.recall_curve import recall_at_k
from retrodb.ann.rerank import LivePart, rerank
from retrodb.ann.search import search
from retrodb.ann.training import train
from retrodb.bench.machine import environment, gemm_gflops, timed
from retrodb.format.part_files import SEARCH_CODES_FILE

Search = Callable[[np.ndarray, int], np.ndarray]  # queries (Q, D), effort -> ids (Q, k)
METRIC = "inner_product"


@dataclass(frozen=True)
class Method:
    """One way to search, with the efforts to try until the recall is reached."""

    name: str
    search: Search
    efforts: list[int]
    build_s: float
    size_bytes: int  # of the index, in memory or mapped, without the float16 vectors that the rerank reads


class Bench:
    """One data set with its exact neighbours, and every method over it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.k = options, options.k
        vectors, _ = mixture(options.rows + options.queries, options.dim, options.seed)
        folder = Path(tempfile.mkdtemp())
        np.save(folder / "vectors.npy", vectors[: options.rows])
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.queries = vectors[options.rows :].astype(np.float32)
        self.ids = np.arange(options.rows)
        self.truth = exact_topk(self.queries, self.vectors, self.k, METRIC)
        self.factory = options.factory or choose_factory(options.rows, options.dim, 8 << 30, metric=METRIC)
        sample = np.sort(np.random.default_rng(options.seed).permutation(self.ids)[: sample_size(self.factory)])
        self.codebook: Codebook
        self.codebook, self.train_s = timed(lambda: train(self.vectors[sample], self.factory, options.seed, METRIC))
        part = folder / "part"
        part.mkdir()
        _, self.build_s = timed(lambda: build_part(self.vectors, self.codebook, part))
        self.live = LivePart(open_part(part), self.ids, self.vectors.__getitem__)
        self.index_bytes = (part / SEARCH_CODES_FILE).stat().st_size

    def methods(self) -> Iterator[Method]:
        """retrodb first, then its peers."""
        probes = list(_steps(1, self.codebook.num_lists))
        build_s = self.train_s + self.build_s
        yield Method("retrodb", self._ours, probes, build_s, self.index_bytes)
        yield Method(f"faiss {self.factory}", self._faiss, probes, build_s, self.index_bytes)
        for peer in (self._usearch, self._hnswlib):
            try:
                yield peer()
            except ModuleNotFoundError as error:
                print(f"skipped: {error.name} is not installed")

    def _ours(self, queries: np.ndarray, nprobe: int) -> np.ndarray:
        return search(queries, [self.live], self.codebook, self.k, nprobe)[0]

    def _faiss(self, queries: np.ndarray, nprobe: int) -> np.ndarray:
        """Plain FAISS. Coarse codes get an exact rerank of as many candidates as in retrodb."""
        index = self.faiss_index
        if self.codebook.ivf is not None:
            faiss.extract_index_ivf(index).nprobe = nprobe
        if not self.codebook.is_coarse:
            return index.search(queries, self.k)[1]
        ids = index.search(queries, self.k + self.codebook.rerank_margin)[1]
        return rerank(queries, ids, [self.live], self.k, METRIC)[0]

    @cached_property
    def faiss_index(self) -> faiss.Index:
        """The part as an index of FAISS."""
        part = self.live.part
        whole = Path(part.folder) / "whole.faiss"

        def rows() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for block in rows_by_list([part], [self.ids]):
                yield block.lists_B, block.rows_B, block.search_codes([part])

        codebook = load_codebook(self.codebook.serialize())
        write_faiss_file(whole, codebook, np.diff(part.offsets_L1), rows, 1)
        return faiss.read_index(str(whole))

    def _usearch(self) -> Method:
        from usearch.index import Index

        index = Index(ndim=self.options.dim, metric="ip", dtype="f16")
        _, build_s = timed(lambda: index.add(self.ids, np.asarray(self.vectors), threads=1))

        def run(queries: np.ndarray, effort: int) -> np.ndarray:
            index.expansion_search = effort
            matches = index.search(queries, self.k, threads=1)
            return np.asarray(matches.keys, dtype=np.int64).reshape(len(queries), -1)

        return Method("usearch HNSW, f16", run, list(_steps(16, 4096)), build_s, int(index.memory_usage))

    def _hnswlib(self) -> Method:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=self.options.dim)
        index.init_index(max_elements=len(self.ids), ef_construction=100, M=16, random_seed=self.options.seed)
        index.set_num_threads(1)
        _, build_s = timed(lambda: index.add_items(self.vectors.astype(np.float32), self.ids, num_threads=1))

        def run(queries: np.ndarray, effort: int) -> np.ndarray:
            index.set_ef(max(effort, self.k))
            return np.asarray(index.knn_query(queries, self.k, num_threads=1)[0], dtype=np.int64)

        return Method("hnswlib M=16, f32", run, list(_steps(16, 4096)), build_s, index.index_file_size())

    def recall(self, ids: np.ndarray) -> float:
        """Recall at k, ties counted."""
        _, distances = rerank(self.queries, ids, [self.live], self.k, METRIC)
        return recall_at_k(ids, distances, *self.truth).mean


def _steps(first: int, last: int) -> Iterator[int]:
    effort = first
    while effort < last:
        yield effort
        effort = max(effort + 1, round(1.15 * effort))
    yield last


def _latencies_ms(run: Search, queries: np.ndarray, effort: int) -> np.ndarray:
    times = []
    for row in range(len(queries)):
        start = time.perf_counter()
        run(queries[row : row + 1], effort)
        times.append(1000 * (time.perf_counter() - start))
    return np.percentile(times, [50, 95, 99])


def report(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the report, one after each measurement."""
    gemm = gemm_gflops()
    yield "## search\n"
    yield ", ".join(f"{name} {value}" for name, value in environment(1).items())
    bench = Bench(options)
    sizes = f"{options.rows:,} x {options.dim} synthetic, {options.queries:,} held-out queries, k {options.k}"
    yield f"seed {options.seed}; {sizes}\n"
    yield "| method | effort | recall | p50 ms | p95 | p99 | queries/s, batch | p50 / ours | batch ours / its | build s | MB |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    ours: tuple[float, float] | None = None
    for method in bench.methods():
        for effort in method.efforts:
            reached = bench.recall(method.search(bench.queries, effort))
            if reached >= options.recall:
                break
        p50, p95, p99 = _latencies_ms(method.search, bench.queries, effort)
        rate = len(bench.queries) / min(timed(lambda: method.search(bench.queries, effort))[1] for _ in range(3))  # noqa: B023
        ours = ours or (p50, rate)
        yield (
            f"| {method.name} | {effort} | {reached:.3f} | {p50:.2f} | {p95:.2f} | {p99:.2f} | {rate:,.0f}"
            f" | {p50 / ours[0]:.2f} | {ours[1] / rate:.2f} | {method.build_s:.1f} | {method.size_bytes / 1e6:.0f} |"
        )
    vectors_mb, margin = bench.vectors.nbytes / 1e6, bench.codebook.rerank_margin
    yield f"\n- ours also maps {vectors_mb:.0f} MB of float16 vectors, and reads k + {margin} of them per query"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield f"- float32 product {gemm:.0f} GFLOP/s before, {gemm_gflops():.0f} after; peak memory {peak:.2f} GiB with all methods\n"


def report_database(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the report on a database, one after each measurement."""
    yield "## search in shards\n"
    yield ", ".join(f"{name} {value}" for name, value in environment(1).items()) + "\n"
    folder = options.folder or Path(tempfile.mkdtemp())
    yield from report_shards(folder, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--factory", help="FAISS factory string; chosen by size without it")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, help="measure a database of so many shards")
    parser.add_argument(
        "--probes", type=int, nargs="+", default=[32, 128], help="lists that a query reads, for --shards"
    )
    parser.add_argument("--folder", type=Path, help="folder of the database, kept for the next run, for --shards")
    parser.add_argument("--out", type=Path, help="file to append the report to, such as benchmarks/results/<date>.md")
    options = parser.parse_args()
    set_threads(1)
    if options.shards and not options.factory:
        parser.error("--shards needs --factory")
    for line in report_database(options) if options.shards else report(options):
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
