"""Every command against the number of chunks: processor time and memory, how they grow, and what becomes of them at 1e12 tokens.

    python benchmarks/bench_scale.py [--small] [--real 125000 250000 500000] [--replicated 1000000 4000000 16000000]
        [--only stats,sql-chunks] [--all-sizes] [--limit-s 900] [--folder DIR] [--label before] [--write]
    python benchmarks/bench_scale.py --simulate [--shards 15000]

Each command of `scale_commands.py` runs in a new process (one worker, one thread) on its own copy of a database: real
ones, built of made-up documents with the encoder `hashing:64`, and replicated ones, in which linked copies of the shards of
the smallest real one are committed under new ids. A hundredth of the documents is deleted in all of them.

CPU is user and system time. Memory is the largest sum of the anonymous memory (RssAnon) of all processes of the command, sampled
every 50 ms; mapped pages of files do not count.

The exponent is the slope between the two largest sizes in logarithms: 0 is independent of the size, 1 is linear. The cost at
1.56e10 chunks (a trillion tokens) is that of the largest size plus the difference of the two largest, continued
as a line: too little where the exponent is above 1. `--simulate` opens, plans and commits on made-up records of that size.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.append(
    str(Path(__file__).resolve().parents[1] / "tests")
)  # the makers of documents and records are the tests' too

from process_cost import ProcessCost, run_measured
from scale_commands import (
    COMMANDS,
    TABLE,
    TABLE_DOCUMENTS,
    ScaleCommand,
    command_line,
    environment_of_commands,
    write_inputs,
)
from scale_databases import CHUNKS_PER_DOCUMENT, ScaleDatabase, build, copy_by_links, grow
from scale_simulation import SHARDS, simulate

from retrodb.bench.machine import environment, gemm_gflops

TARGET = 15_600_000_000
SMALL = {"real": [5_000, 10_000], "replicated": [40_000, 80_000]}
WARM_UP_CHUNKS = 2_000  # of a database on which each command runs once before: kernels are compiled, libraries are read
RESULTS = Path(__file__).resolve().parent / "results"

Costs = dict[str, ProcessCost]
"""By the name of a command."""


class Bench:
    """The folder with the databases, and the running of commands on copies of them."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        self.folder, self.limit_s = folder, limit_s
        self.environment = environment_of_commands(folder / "cache", dict(os.environ))

    def real(self, num_chunks: int) -> ScaleDatabase:
        """A database that is built."""
        return build(self.folder / f"real-{num_chunks}", self._documents(num_chunks), num_chunks, self._run)

    def replicated(self, base: int, num_chunks: int) -> ScaleDatabase:
        """A database that grows from a built one."""
        return grow(self.real(base), self.folder / f"replicated-{num_chunks}", num_chunks, self._run)

    def measure(self, command: ScaleCommand, database: ScaleDatabase, base: int) -> ProcessCost:
        """The cost of a command on a copy of the database; that of what is done before it is not in it."""
        inputs = self.folder / "inputs"
        write_inputs(inputs, self._documents(base))
        source = self._with_table(database) if command.needs_table else database.folder
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            copy = Path(scratch, "db")
            copy_by_links(source, copy)
            values = {"db": str(copy), "inputs": str(inputs), "head": str(database.head)}
            for arguments in command.before:
                cost = self._cost(arguments, values)
                if cost.error:
                    return ProcessCost(0, 0, 0, f"{arguments[0]} before it: {cost.error}")
            return self._cost(command.arguments, values)

    def _with_table(self, database: ScaleDatabase) -> Path:
        """The database with a neighbour table, made when it is first needed."""
        folder = database.folder.with_name(f"{database.folder.name}-table")
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            copy_by_links(database.folder, unfinished)
            sample = min(1.0, TABLE_DOCUMENTS * CHUNKS_PER_DOCUMENT / database.num_chunks)
            self._run(command_line(TABLE, db=str(unfinished), sample=f"{sample:.8f}")[1:])
            unfinished.rename(folder)
        return folder

    def _cost(self, arguments: Sequence[str], values: Mapping[str, str]) -> ProcessCost:
        return run_measured(command_line(tuple(arguments), **values), self.environment, self.limit_s)

    def _run(self, arguments: list[str]) -> None:
        subprocess.run(command_line(tuple(arguments)), env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def _documents(self, num_chunks: int) -> Path:
        return self.folder / "documents" / f"{num_chunks}.jsonl"


def measure_all(bench: Bench, options: argparse.Namespace) -> Iterator[tuple[ScaleDatabase, Costs]]:
    """The costs of the chosen commands on every database, smallest first."""
    chosen = [c for c in COMMANDS if not options.only or c.name in options.only]
    warm = bench.real(WARM_UP_CHUNKS)
    for command in chosen:
        bench.measure(command, warm, WARM_UP_CHUNKS)
    base = options.real[0]
    sizes = [(n, n, bench.real) for n in options.real]
    sizes += [(n, base, lambda n: bench.replicated(base, n)) for n in options.replicated]
    for num_chunks, documents, make in sizes:
        database, costs = make(num_chunks), dict[str, ProcessCost]()
        for command in chosen:
            if database.num_chunks <= command.largest or options.all_sizes:
                costs[command.name] = cost = bench.measure(command, database, documents)
                shown = cost.error or f"{cost.cpu_s:.2f} s CPU, {cost.elapsed_s:.2f} s, {_bytes(cost.peak_bytes)}"
                print(f"{database.name}: {command.name}: {shown}", file=sys.stderr, flush=True)
        yield database, costs


def tables(measured: Sequence[tuple[ScaleDatabase, Costs]]) -> Iterator[str]:
    """One table of processor time and one of memory, in Markdown."""
    yield from _table("CPU", measured, lambda cost: cost.cpu_s, _seconds)
    yield from ("", *_table("Memory", measured, lambda cost: float(cost.peak_bytes), _bytes))
    for database, costs in measured:
        for name, cost in costs.items():
            if cost.error:
                yield f"\nFailed: `{name}` at {database.name}: {cost.error}"


def _table(
    title: str,
    measured: Sequence[tuple[ScaleDatabase, Costs]],
    value_of: Callable[[ProcessCost], float],
    show: Callable[[float], str],
) -> Iterator[str]:
    names = [command.name for command in COMMANDS if any(command.name in costs for _, costs in measured)]
    sizes = " | ".join(database.name for database, _ in measured)
    yield f"| {title} | {sizes} | exponent | per million | at 1.56e10 |"
    yield "|---" * (len(measured) + 4) + "|"
    for name in names:
        points = [(d.num_chunks, value_of(c[name])) for d, c in measured if name in c and not c[name].error]
        values = dict(points)
        shown = " | ".join(show(values[d.num_chunks]) if d.num_chunks in values else "-" for d, _ in measured)
        yield f"| {name} | {shown} | {_growth(sorted(points), show)} |"


def _growth(points: Sequence[tuple[int, float]], show: Callable[[float], str]) -> str:
    """Exponent, cost of a further million chunks, and the cost at the target; dashes for fewer than two sizes."""
    if len(points) < 2 or min(points[-2][1], points[-1][1]) <= 0:
        return "- | - | -"
    (n, before), (m, last) = points[-2:]
    slope = max(0.0, (last - before) / (m - n))
    exponent = math.log(last / before) / math.log(m / n)
    return f"{exponent:.2f} | {show(slope * 1e6)} | {show(last + slope * (TARGET - m))}"


def _seconds(value: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.2f} s"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value / 1e6:,.0f} MB"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=int, nargs="+", default=[125_000, 250_000, 500_000], help="chunks of built ones")
    parser.add_argument(
        "--replicated",
        type=int,
        nargs="*",
        default=[1_000_000, 4_000_000, 16_000_000],
        help="chunks of replicated ones",
    )
    parser.add_argument("--small", action="store_true", help="small databases: minutes")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of commands, with commas")
    parser.add_argument(
        "--all-sizes", action="store_true", help="also the large sizes that a command is not measured at"
    )
    parser.add_argument("--limit-s", type=float, default=900, help="a command that takes longer is killed")
    parser.add_argument("--folder", type=Path, help="keep the databases here, for another run")
    parser.add_argument("--label", default="", help="last part of the name of the results file")
    parser.add_argument("--write", action="store_true", help=f"write a dated file in {RESULTS.name}/")
    parser.add_argument("--simulate", action="store_true", help="records of 1.56e10 chunks instead of the commands")
    parser.add_argument("--shards", type=int, default=SHARDS, help="shards of the simulation, a million chunks each")
    options = parser.parse_args()
    if options.small:
        options.real, options.replicated = SMALL["real"], SMALL["replicated"]
    if unknown := set(options.only or ()) - {command.name for command in COMMANDS}:
        parser.error(f"no command {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in COMMANDS)}")
    return options


def main() -> None:
    options = parse_options()
    title = (
        "Opening, planning and commits on made-up records"
        if options.simulate
        else "Commands against the number of chunks"
    )
    machine = ", ".join(f"{name} {value}" for name, value in environment(1).items())
    today = datetime.date.today().isoformat()
    arguments = [a for a in sys.argv[1:] if a != "--write"]
    lines = [f"# {title}, {today}", "", f"    python benchmarks/bench_scale.py {' '.join(arguments)}".rstrip(), ""]
    lines += [f"{machine}; load {os.getloadavg()[0]:.1f}; float32 product {gemm_gflops():.0f} GFLOP/s before.", ""]
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = options.folder or Path(temporary)
        if options.simulate:
            lines += simulate(Path(temporary), options.shards, dict(os.environ))
        else:
            lines += tables(list(measure_all(Bench(folder, options.limit_s), options)))
    lines += ["", f"Load {os.getloadavg()[0]:.1f}; float32 product {gemm_gflops():.0f} GFLOP/s after."]
    print("\n".join(lines))
    if options.write:
        name = "-".join(
            part for part in (today, "scale", "simulation" if options.simulate else "", options.label) if part
        )
        (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
