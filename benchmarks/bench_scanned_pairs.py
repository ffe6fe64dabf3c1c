"""The CPU of the neighbour join for each pair of a query and a vector that it scans, against the number of vectors.

A join that reads lists in order should cost the same for each pair at any size: the lists grow in number and not in length.
The vectors are made up, or given; one thread runs. The number of probed lists is the one that reaches the recall, measured
against the exact product.
Queries are rows of the database in the order of their lists, as in a whole join. "Scan" is the scan alone, "join" has the
encoding of the queries, the exact rerank and the exclusion of the own document, too.

    python benchmarks/bench_scanned_pairs.py
    python benchmarks/bench_scanned_pairs.py --vectors vectors.npy --documents documents.npy --rows 125000 500000
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_neighbours import Bench, Method, set_threads

from retrodb.ann.join import RERANK_MARGIN, ScannedDatabase, scan_lists_of
from retrodb.ann.topk import empty_topk
from retrodb.bench.machine import environment

VECTORS_PER_LIST = 122


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[125_000, 250_000, 500_000, 1_000_000, 2_000_000])
    parser.add_argument("--vectors", type=Path, help="(N, D) float16 .npy; a synthetic mixture without it")
    parser.add_argument("--documents", type=Path, help="(N,) document number of each vector, .npy")
    parser.add_argument("--dim", type=int, default=64, help="of the mixture")
    parser.add_argument("--queries", type=int, default=40_000)
    parser.add_argument("--truth", type=int, default=500, help="queries whose recall is measured")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--nearest-lists", type=int, default=512, help="largest number of probed lists")
    parser.add_argument("--recall", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_threads(1)
    print(", ".join(f"{name} {value}" for name, value in environment(1).items()))
    print("\n| vectors | lists | probed | recall | pairs of a query | CPU of the scan, ns a pair | of the join |")
    print("|---|---|---|---|---|---|---|")
    for rows in options.rows:
        print(measured_row(options, rows), flush=True)


def measured_row(options: argparse.Namespace, rows: int) -> str:
    """The row of the table for one number of vectors."""
    lists = rows // VECTORS_PER_LIST
    bench = Bench(argparse.Namespace(**{**vars(options), "rows": rows}, lists=lists, threads=[1], spread=False))
    nprobe, recall = bench.at_recall(Method("join", bench.join, top=options.nearest_lists), options.recall)
    pairs = bench.scanned(nprobe) * len(bench.rows)
    queries = bench.queries.astype(np.float32)
    database = ScannedDatabase.of([bench.live], bench.codebook, bench.codebook.num_lists)

    def scan() -> None:
        best = empty_topk(len(queries), options.k + RERANK_MARGIN)
        scan_lists_of(queries, bench.lists[:, :nprobe], database, bench.exclusion, best)

    def join() -> None:
        bench.join(nprobe, True, np.arange(len(queries)))

    scan_ns, join_ns = (1e9 * min(cpu_s(run) for _ in range(options.rounds)) / pairs for run in (scan, join))
    cells = [f"{rows:,}", f"{lists:,}", str(nprobe), f"{recall:.3f}", f"{pairs / len(queries):,.0f}"]
    return f"| {' | '.join([*cells, f'{scan_ns:.2f}', f'{join_ns:.2f}'])} |"


def cpu_s(run: Callable[[], None]) -> float:
    """User and system time that a call takes."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
