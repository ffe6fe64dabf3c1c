"""Growth: the time and memory to build, to add a shard and to join as a corpus grows, and an estimate for 15.6 billion chunks.

Every size runs in a process of its own, so that its peak memory is measured alone. The same shard is added to each size. The
exponents are least-squares fits of log(cost) against log(size).

    python benchmarks/bench_index.py [--rows 31250 62500 125000 250000] [--out FILE]
    python benchmarks/bench_index.py --rows 62500 125000 250000 500000 1000000 --threads 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from bench_neighbours import mixture, set_threads

from retrodb.ann.codebook import choose_factory, num_lists_of, sample_size
from retrodb.ann.drift import imbalance
from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.join import join_block
from retrodb.ann.merge_parts import merge_parts
from retrodb.ann.part import build_part, open_part
from retrodb.ann.recall_curve import recall_curve
from retrodb.ann.rerank import LivePart
from retrodb.ann.training import train
from retrodb.bench.machine import environment, gemm_gflops, timed

METRIC = "inner_product"
TARGET_ROWS = 15.6e9  # a trillion tokens
K = 10


@dataclass(frozen=True)
class Cost:
    """The cost of one size."""

    rows: int
    factory: str
    train_s: float
    build_s: float  # the parts
    merge_s: float  # of eight equal parts into one
    add_s: float  # one more shard of fixed size
    nprobe: int  # for recall 0.95
    scanned: float  # vectors per query at this number
    join_s: float  # of all rows, estimated from a sample of adjacent ones
    imbalance: float
    index_gib: float
    peak_gib: float


def measure(rows: int, options: argparse.Namespace) -> Cost:
    """Build, grow and join one corpus."""
    set_threads(options.threads)
    vectors, documents = mixture(rows + options.shard, options.dim, options.seed)
    folder = Path(tempfile.mkdtemp())
    factory = choose_factory(rows, options.dim, 8 << 30, metric=METRIC)
    random = np.random.default_rng(options.seed)
    sample = np.sort(random.permutation(rows)[: sample_size(factory)])
    codebook, train_s = timed(lambda: train(vectors[sample], factory, options.seed, METRIC, options.threads))
    bounds = np.linspace(0, rows, 9).astype(int)

    def build(name: str, first: int, stop: int) -> Path:
        (folder / name).mkdir()
        build_part(vectors[first:stop], codebook, folder / name, threads=options.threads)
        return folder / name

    paths, build_s = timed(lambda: [build(str(n), *bounds[n : n + 2]) for n in range(8)])
    (folder / "merged").mkdir()
    positions = [np.arange(*bounds[n : n + 2]) for n in range(8)]
    _, merge_s = timed(lambda: merge_parts([open_part(path) for path in paths], positions, folder / "merged"))
    _, add_s = timed(lambda: build("shard", rows, rows + options.shard))
    part = open_part(folder / "merged")
    live = LivePart(part, np.arange(rows), vectors[:rows].__getitem__, None, {"document": documents[:rows]})
    queried = part.order_N[: min(rows, options.queries)]
    exclusion = Exclusion.of(len(queried), document=documents[queried])
    sampled = np.sort(random.permutation(len(queried))[: options.truth])
    truth, _ = exact_topk(vectors[queried[sampled]], live.blocks(), K, METRIC, exclusion.rows(sampled), options.threads)
    nearest = codebook.nearest_lists(vectors[queried[sampled]], min(codebook.num_lists, 512), options.threads)
    sizes = np.diff(part.offsets_L1)
    curve = recall_curve(nearest, np.where(truth >= 0, part.lists_N.whole()[truth], -1), sizes)
    point = next(point for point in curve if point.recall.mean >= 0.95)  # StopIteration: 512 lists are too few
    args = (vectors[queried], None, [live], codebook, K, point.nprobe, exclusion)
    join_block(*args, threads=options.threads)  # compiled and in memory
    _, join_s = timed(lambda: join_block(*args, threads=options.threads))
    return Cost(
        rows,
        factory,
        train_s,
        build_s,
        merge_s,
        add_s,
        point.nprobe,
        point.scanned,
        join_s * rows / len(queried),
        imbalance(sizes),
        sum(file.stat().st_size for file in (folder / "merged").iterdir()) / 2**30,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )


def exponent(rows: list[int], costs: list[float]) -> tuple[float, float]:
    """Factor and exponent of the power law through the points."""
    slope, intercept = np.polyfit(np.log(rows), np.log(np.maximum(costs, 1e-9)), 1)
    return float(np.exp(intercept)), float(slope)


def report(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the report, one after each measurement."""
    gemm = gemm_gflops()
    yield "## index\n"
    yield ", ".join(f"{name} {value}" for name, value in environment(options.threads).items())
    yield f"seed {options.seed}; synthetic, {options.dim} dimensions; shards of {options.shard:,}; k {K}, scan recall 0.95\n"
    names = [name.replace("_", " ") for name in Cost.__dataclass_fields__]
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    costs = []
    for rows in options.rows:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            costs.append(pool.apply(measure, (rows, options)))
        cells = [
            f"{v:,.3g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
            for v in asdict(costs[-1]).values()
        ]
        yield f"| {' | '.join(cells)} |"
    yield "\n| cost | exponent | at 15.6e9 rows |\n|---|---|---|"
    sizes = [cost.rows for cost in costs]
    for name in ("train_s", "build_s", "merge_s", "add_s", "join_s", "scanned", "index_gib"):
        factor, power = exponent(sizes, [getattr(cost, name) for cost in costs])
        estimate = f"{factor:.3g} x 15.6e9^{power:.2f} = {factor * TARGET_ROWS**power:.3g}"
        yield f"| {name.replace('_', ' ')} | {power:.2f} | {estimate} |"
    factor, power = exponent(sizes, [cost.join_s for cost in costs])
    lists = num_lists_of(choose_factory(int(TARGET_ROWS), options.dim, 8 << 30, metric=METRIC))
    row_bytes = costs[-1].index_gib * 2**30 / costs[-1].rows
    yield f"\n- joining 15.6e9 rows with {options.threads} threads: {factor * TARGET_ROWS**power / 3600:.3g} hours"
    yield f"- index parts: {row_bytes:.0f} bytes per row x 15.6e9 = {row_bytes * TARGET_ROWS / 2**40:.1f} TiB"
    yield f"- codebook at that size: {lists:,} lists x {options.dim} x 4 bytes = {lists * options.dim * 4 / 2**30:.1f} GiB"
    yield "- at that size a list has more rows and a graph finds the lists, so a fit over small sizes is only an estimate"
    yield f"- float32 product {gemm:.0f} GFLOP/s before, {gemm_gflops():.0f} after\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[31_250, 62_500, 125_000, 250_000])
    parser.add_argument("--shard", type=int, default=8_192, help="rows of the shard that is added to each")
    parser.add_argument("--queries", type=int, default=8_192, help="rows whose join is timed")
    parser.add_argument("--truth", type=int, default=256, help="rows whose exact neighbours give the recall")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to append the report to, such as benchmarks/results/<date>.md")
    options = parser.parse_args()
    for line in report(options):
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
