"""Single queries of a database of many shards next to one FAISS index that has the same lists, for `bench_search.py --shards`.

The index is what `retrodb index --export-faiss` writes: the same codebook, codes and ids. Both answer with the same number of
lists and k, on one thread. retrodb also computes exact distances of k + 16 candidates (k + 200 of short codes) from the vectors.

Warm queries are asked in turn of all methods, after each method has answered all of them once. Cold queries are asked in a new
process, after the pages of all files were dropped from the page cache; FAISS maps its file there. A query is asked once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.append(
    str(Path(__file__).resolve().parents[1] / "tests")
)  # the makers of documents and records are the tests' too

import faiss
import numpy as np
from bench_neighbours import set_threads
from scale_databases import build_in_shards

import retrodb
from retrodb.ann.rerank import rerank_by_id
from retrodb.database import Database
from retrodb.format.arrays import Float32Array, Int64Array

NOISE = 0.05  # standard deviation of what is added to each dimension of a stored vector, to make a query
ROUNDS = 3  # new processes of each method, which ask different queries
MERGED, UNMERGED, FAISS, RERANK = (
    "retrodb, as index leaves it",
    "retrodb, parts unmerged",
    "faiss",
    "the exact rerank alone",
)

Ask = Callable[[Float32Array], Int64Array]
"""A query (1, D) -> ids (1, k)."""
Times = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""Elapsed and processor time (n, 2) of queries, in milliseconds."""


@dataclass(frozen=True)
class ShardBench:
    """A database, its file for FAISS, and how it is asked."""

    folder: Path
    k: int
    nprobe: int

    @property
    def file(self) -> Path:
        """The index for FAISS."""
        return self.folder / "whole.faiss"

    def open(self) -> Database:
        """The database."""
        return retrodb.open(self.folder / "db")

    def ask(self, method: str, *, is_mapped: bool = False) -> Ask:
        """A method, opened."""
        if method in (MERGED, UNMERGED):
            database = self.open()
            searcher = database.searcher(as_of=database.view().snapshot.number - (method == UNMERGED))
            return lambda query: searcher.arrays(query, self.k, nprobe=self.nprobe)[0]
        index = faiss.read_index(str(self.file), faiss.IO_FLAG_MMAP if is_mapped else 0)
        faiss.extract_index_ivf(index).nprobe = self.nprobe
        if method == FAISS:
            return lambda query: index.search(query, self.k)[1]
        codebook, view = self.open().searcher().codebook, self.open().view()
        fetch = partial(view.vectors, view.snapshot.default_space)
        candidates = lambda query: index.search(query, self.k + codebook.rerank_margin)[1]  # noqa: E731
        return lambda query: rerank_by_id(query, candidates(query), fetch, self.k, codebook.metric)[0]

    def queries(self, count: int, seed: int) -> Float32Array:
        """Vectors near stored ones."""
        view, random = self.open().view(), np.random.default_rng(seed)
        ids = random.permutation(view.chunks.end)[: 2 * count]
        vectors = view.vectors(view.snapshot.default_space, ids).astype(np.float32)
        vectors = vectors[(vectors != 0).any(axis=1)][:count]  # the short end of a document has no vector
        vectors += NOISE * random.standard_normal(vectors.shape, dtype=np.float32)
        return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _times(ask: Ask, query: Float32Array) -> tuple[float, float]:
    start, start_cpu = time.perf_counter(), time.thread_time()
    ask(query)
    return 1000 * (time.perf_counter() - start), 1000 * (time.thread_time() - start_cpu)


def _warm(bench: ShardBench, queries: Float32Array) -> dict[str, Times]:
    """The times of all methods, in turn."""
    methods = {name: bench.ask(name) for name in (FAISS, MERGED, UNMERGED)}
    rows = [queries[row : row + 1] for row in range(len(queries))]
    for ask in methods.values():
        for query in rows:
            ask(query)
    times = [{name: _times(ask, query) for name, ask in methods.items()} for query in rows]
    return {name: np.array([of_query[name] for of_query in times]) for name in methods}


def _cold(bench: ShardBench, method: str, queries: Float32Array) -> tuple[float, Times]:
    """In a new process: seconds to open, and the times of the queries."""
    set_threads(1)
    start = time.perf_counter()
    ask = bench.ask(method, is_mapped=True)
    opened_s = time.perf_counter() - start
    return opened_s, np.array([_times(ask, queries[row : row + 1]) for row in range(len(queries))])


def drop_pages(folder: Path) -> None:
    """Drop all files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _row(name: str, times: Times, peer: Times, note: str) -> str:
    own, other = (np.percentile(of, [50, 99], axis=0) for of in (times, peer))  # (2 percentiles, elapsed and CPU)
    values = [f"{own[at, kind]:.2f} | {own[at, kind] / other[at, kind]:.2f}" for kind in (1, 0) for at in (0, 1)]
    return f"| {name} | {' | '.join(values)} | {note} |"


def report_shards(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """The lines of the report, one after each measurement."""
    build_in_shards(folder, options.rows, options.shards, options.dim, options.factory)
    k, count = options.k, options.queries
    bench = ShardBench(folder, k, options.probes[0])
    if not bench.file.exists():
        bench.open().export_faiss(bench.file)
    view = bench.open().view()
    num_parts = [len(bench.open().searcher(as_of=view.snapshot.number - back).parts) for back in (0, 1)]
    sizes = f"{view.chunks.end:,} chunks, {len(view.shards)} shards, hashing:{options.dim}"
    yield f"{sizes}, {options.factory}, k {k}, {count} queries"
    yield f"index parts: {num_parts[0]} as `retrodb index` leaves it, {num_parts[1]} before its merge"
    for nprobe in options.probes:
        bench = ShardBench(folder, k, nprobe)
        queries = bench.queries(count * (1 + ROUNDS), nprobe)
        yield from (
            "",
            f"nprobe {nprobe}",
            "",
            "| | CPU p50 ms | / faiss | CPU p99 | / faiss | p50 ms | / faiss | p99 | / faiss | |",
        )
        yield "|" + "---|" * 10
        warm = _warm(bench, queries[:count])
        for name, times in warm.items():
            yield _row(f"warm: {name}", times, warm[FAISS], "")
        asks = bench.ask(RERANK), bench.ask(FAISS)
        extra = np.median([np.subtract(*(_times(ask, queries[:1])[1] for ask in asks)) for _ in range(50)])
        yield f"| the exact rerank of k + margin candidates of faiss takes {extra:.2f} ms more |" + " |" * 9
        cold: dict[str, list[tuple[float, Times]]] = {FAISS: [], MERGED: [], UNMERGED: []}
        for number in range(ROUNDS):
            for name, measured in cold.items():
                drop_pages(folder)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    measured.append(pool.apply(_cold, (bench, name, queries[count * (1 + number) :][:count])))
        later = {name: np.concatenate([times[1:] for _, times in measured]) for name, measured in cold.items()}
        for name, measured in cold.items():
            opened, first = (np.median(values) for values in ([m[0] for m in measured], [m[1][0, 0] for m in measured]))
            yield _row(f"cold: {name}", later[name], later[FAISS], f"open {opened:.2f} s, first query {first:.0f} ms")
