"""A join that is split by ranges of lists: the bytes that its tasks exchange, against the ranges that a row probes.

    python benchmarks/bench_list_ranges.py DB [DB ...] [--ranges 1 4 16 64] [--workers 1 2] [--k 10] [--recall 0.9] [--write]

Each join runs in a new process on a copy of the database (files are linked). F is the number of ranges that a row was sent
to, its home range included. The bytes of a row should be a + b F for any number of ranges, and the same for each database at
the same F. All tables of one database have to have the same bytes; the benchmark stops where they differ.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(
    str(Path(__file__).resolve().parents[1] / "tests")
)  # the makers of documents and records are the tests' too

from process_cost import run_measured
from scale_databases import copy_by_links

import retrodb
from retrodb.bench.machine import environment

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT_S = 3600
_PROGRAM = """
import json, sys, retrodb
if __name__ == "__main__":
    db, out, workers, ranges, k, recall = sys.argv[1:]
    result = retrodb.open(db, workers=int(workers)).neighbours(
        list_ranges=int(ranges), k=int(k), recall=float(recall), device="cpu"
    )
    names = ("num_rows", "ranges_per_row", "exchanged_bytes", "nprobe", "recall_reached")
    with open(out, "w") as file:
        json.dump({name: getattr(result, name) for name in names}, file)
"""


@dataclass(frozen=True)
class RangeCost:
    """One join."""

    database: str
    ranges: int
    workers: int
    num_rows: int
    ranges_per_row: float
    exchanged_bytes: int
    cpu_s: float
    elapsed_s: float
    anonymous_bytes: int
    nprobe: int  # lists that each row probes
    recall: float  # reached
    table: str  # digest of its rows


def main() -> None:
    """Run the joins, check that the tables are equal, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="+", type=Path)
    parser.add_argument("--ranges", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--workers", nargs="+", type=int, default=[1])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--recall", type=float, default=0.9)
    parser.add_argument("--write", action="store_true", help="write the report into benchmarks/results/")
    options = parser.parse_args()
    costs = [
        join(database, ranges, workers, options.k, options.recall)
        for database in options.databases
        for ranges in options.ranges
        for workers in options.workers
    ]
    for database in {cost.database for cost in costs}:
        assert len({cost.table for cost in costs if cost.database == database}) == 1, f"tables of {database} differ"
    report = "\n".join(lines(costs, options))
    print(report)
    if options.write:
        (RESULTS / f"{datetime.date.today().isoformat()}-list-ranges.md").write_text(report + "\n")


def join(database: Path, ranges: int, workers: int, k: int, recall: float) -> RangeCost:
    """Join all rows of a copy of a database."""
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        copy = Path(folder) / "db"
        copy_by_links(database, copy)
        out = Path(folder) / "out.json"
        command = [sys.executable, "-c", _PROGRAM, *map(str, (copy, out, workers, ranges, k, recall))]
        environment_of_join = {**os.environ, "OMP_NUM_THREADS": "1", "RETRODB_CACHE_DIR": str(Path(folder) / "cache")}
        cost = run_measured(command, environment_of_join, LIMIT_S)
        if cost.error:
            raise SystemExit(f"{database.name}, {ranges} ranges: {cost.error}")
        result = json.loads(out.read_text())
        table = retrodb.open(copy).neighbour_table()
        digest = hashlib.sha256()
        for block in table.blocks():
            for array in table.stored(block):
                digest.update(array.tobytes())
        return RangeCost(
            database.name, ranges, workers, result["num_rows"], result["ranges_per_row"], result["exchanged_bytes"],
            cost.cpu_s, cost.elapsed_s, cost.peak_bytes, result["nprobe"],
            result["recall_reached"], digest.hexdigest(),
        )  # fmt: skip


def lines(costs: list[RangeCost], options: argparse.Namespace) -> list[str]:
    """The report."""
    rows = [
        f"| {cost.database} | {cost.num_rows:,} | {cost.ranges} | {cost.workers} | {cost.ranges_per_row:.2f} "
        f"| {cost.exchanged_bytes / cost.num_rows:,.0f} | {cost.cpu_s:.1f} s | {cost.elapsed_s:.1f} s "
        f"| {cost.anonymous_bytes / 1e6:,.0f} MB | {cost.nprobe} | {cost.recall:.3f} |"
        for cost in costs
    ]
    several = [cost for cost in costs if cost.ranges > 1]
    fit = []
    if len({cost.ranges_per_row for cost in several}) > 1:
        probed = np.array([cost.ranges_per_row for cost in several])
        size = np.array([cost.exchanged_bytes / cost.num_rows for cost in several])
        slope, constant = np.polyfit(probed, size, 1)
        worst = float(np.abs((constant + slope * probed) / size - 1).max())
        fit = ["", f"Bytes of a row: {constant:,.0f} + {slope:,.0f} F; the worst of these figures is {worst:.1%} off."]
    names = " ".join(database.name for database in options.databases)
    return [
        f"# Joins split by ranges of lists, {datetime.date.today().isoformat()}",
        "",
        f"    python benchmarks/bench_list_ranges.py {names} --ranges {' '.join(map(str, options.ranges))} "
        f"--workers {' '.join(map(str, options.workers))} --k {options.k} --recall {options.recall}",
        "",
        ", ".join(f"{name} {value}" for name, value in environment(max(options.workers)).items()),
        "",
        "| database | rows | ranges | workers | F | exchanged bytes of a row | CPU | elapsed | memory | lists probed | recall |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        *fit,
    ]


if __name__ == "__main__":
    main()
