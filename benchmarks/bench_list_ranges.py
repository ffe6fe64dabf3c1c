"""A join that is split by ranges of lists: the bytes that its tasks exchange, against the ranges that a row probes.

    python benchmarks/bench_list_ranges.py DB [DB ...] [--ranges 1 4 16 64] [--workers 1 2] [--k 10] [--recall 0.9] [--write]
        [--route-ranges 0 16 64] [--truth 2000]

Each join runs in a new process on a copy of the database (files are linked). F is the number of ranges that a row was sent
to, its home range included. The bytes of a row should be a + b F for any number of ranges, and the same for each database at
the same F. All tables of one database and one number of routing ranges have to have the same bytes; the benchmark stops where
they differ.

`--route-ranges` lists numbers of routing ranges (0: none), each joined with the execution ranges of `--ranges`. Recall is
measured on `--truth` rows. They are drawn with another seed than the sample by which the join chose its lists.
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
from retrodb.ann.recall_curve import recall_at_k
from retrodb.bench.machine import environment
from retrodb.config import NeighboursParams
from retrodb.stages.index.live_parts import open_codebook
from retrodb.stages.neighbours.block_join import exact_neighbours
from retrodb.stages.neighbours.table_inputs import database_side, exclusion_of
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT_S = 3600
_PROGRAM = """
import dataclasses, json, sys, retrodb
if __name__ == "__main__":
    db, out, workers, ranges, k, recall, routes = sys.argv[1:]
    result = retrodb.open(db, workers=int(workers)).neighbours(
        list_ranges=int(ranges), k=int(k), recall=float(recall), device="cpu", route_ranges=int(routes)
    )
    with open(out, "w") as file:
        json.dump(dataclasses.asdict(result), file)
"""


@dataclass(frozen=True)
class RangeCost:
    """One join."""

    database: str
    routes: int  # ranges that rows are routed to; 0: none
    routing: dict[str, float] | None  # ranges and vectors of a row, with and without it, on the sample of the join
    ranges: int
    workers: int
    num_rows: int
    ranges_per_row: float
    exchanged_bytes: int
    cpu_s: float
    elapsed_s: float
    anonymous_bytes: int
    nprobe: int  # lists that each row probes
    recall: float  # of other rows than those of the sample
    table: str  # digest of its rows


def main() -> None:
    """Run the joins, check that the tables are equal, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="+", type=Path)
    parser.add_argument("--ranges", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--workers", nargs="+", type=int, default=[1])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--recall", type=float, default=0.9)
    parser.add_argument("--route-ranges", nargs="+", type=int, default=[0])
    parser.add_argument("--truth", type=int, default=2000, metavar="ROWS")
    parser.add_argument("--write", action="store_true", help="write the report into benchmarks/results/")
    options = parser.parse_args()
    costs = []
    for database in options.databases:
        truth = TrueNeighbours.of(database, options.k, options.truth)
        costs += [
            join(database, truth, ranges, workers, options.k, options.recall, routes)
            for routes in options.route_ranges
            for ranges in options.ranges
            for workers in options.workers
        ]
    for table in {(cost.database, cost.routes) for cost in costs}:
        same = {cost.table for cost in costs if (cost.database, cost.routes) == table}
        assert len(same) == 1, f"tables of {table[0]} with {table[1]} routing ranges differ"
    report = "\n".join(lines(costs, options))
    print(report)
    if options.write:
        (RESULTS / f"{datetime.date.today().isoformat()}-list-ranges.md").write_text(report + "\n")


@dataclass(frozen=True)
class TrueNeighbours:
    """The exact neighbours of some rows of a database."""

    rows: np.ndarray
    ids: np.ndarray
    distances: np.ndarray

    @staticmethod
    def of(database: Path, k: int, num_rows: int) -> TrueNeighbours:
        """By an exact scan in this process."""
        view, params = retrodb.open(database).view(), NeighboursParams()
        space = view.snapshot.default_space
        parts = database_side(view, space, params)
        ids = np.concatenate([part.ids_N for part in parts])
        rows = np.sort(np.random.default_rng(1).choice(ids, min(num_rows, len(ids)), replace=False))
        exclusion, metric = exclusion_of(view, SELF, params, rows), open_codebook(view, space).metric
        return TrueNeighbours(rows, *exact_neighbours(view.vectors(space, rows), parts, metric, exclusion, k, 1))

    def recall(self, table: NeighbourTable, k: int) -> float:
        """recall@k of a table on these rows."""
        ids, distances = (array[:, :k] for array in table.stored(self.rows))
        return recall_at_k(ids, distances, self.ids, self.distances).mean


def join(
    database: Path, truth: TrueNeighbours, ranges: int, workers: int, k: int, recall: float, routes: int
) -> RangeCost:
    """Join all rows of a copy of a database."""
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        copy = Path(folder) / "db"
        copy_by_links(database, copy)
        out = Path(folder) / "out.json"
        command = [sys.executable, "-c", _PROGRAM, *map(str, (copy, out, workers, ranges, k, recall, routes))]
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
            database.name, routes, result["routing"], ranges, workers, result["num_rows"], result["ranges_per_row"],
            result["exchanged_bytes"], cost.cpu_s, cost.elapsed_s, cost.peak_bytes, result["nprobe"],
            truth.recall(table, k), digest.hexdigest(),
        )  # fmt: skip


def lines(costs: list[RangeCost], options: argparse.Namespace) -> list[str]:
    """The report."""
    rows = [
        f"| {cost.database} | {cost.num_rows:,} | {cost.routes or '-'} | {cost.ranges} | {cost.workers} "
        f"| {cost.ranges_per_row:.2f} | {cost.exchanged_bytes / cost.num_rows:,.0f} | {cost.cpu_s:.1f} s "
        f"| {cost.elapsed_s:.1f} s | {cost.anonymous_bytes / 1e6:,.0f} MB | {cost.nprobe} | {cost.recall:.3f} |"
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
        f"--route-ranges {' '.join(map(str, options.route_ranges))} --workers {' '.join(map(str, options.workers))} "
        f"--k {options.k} --recall {options.recall} --truth {options.truth}",
        "",
        ", ".join(f"{name} {value}" for name, value in environment(max(options.workers)).items()),
        "",
        "| database | rows | routing ranges | ranges | workers | F | exchanged bytes of a row | CPU | elapsed | memory "
        "| lists probed | recall |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        *fit,
        *_saved(costs),
    ]


def _saved(costs: list[RangeCost]) -> list[str]:
    """What the plan of each routed table says."""
    saved = {(cost.database, cost.routes): cost.routing for cost in costs if cost.routing}
    rows = [
        f"| {database} | {routes} | {of['ranges']:.2f} | {of['ranges_without']:.2f} | {of['scanned']:,.0f} "
        f"| {of['scanned_without']:,.0f} | {of['scanned'] / of['scanned_without']:.2f} |"
        for (database, routes), of in saved.items()
    ]
    head = [
        "",
        "| database | routing ranges | read by a row | without routing | products of a row | without routing | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    return [*head, *rows] if rows else []


if __name__ == "__main__":
    main()
