"""The anonymous memory of every command, all its processes together, with and without a limit; and that of each kind of tasks.

    python benchmarks/bench_memory.py [--chunks 100000] [--memory 512] [--workers 1 2] [--only tag,index] [--folder DIR] [--write]
    python benchmarks/bench_memory.py --tasks [--chunks 100000] [--folder DIR]
    python benchmarks/bench_memory.py --stages [--chunks 2000000] [--memory 512] [--workers 2] [--folder DIR] [--write]

Each command runs on its own copy of a database of made-up documents with the encoder `hashing:64`, once for each number of
workers, without a limit and with `--memory` (MiB). Memory is the largest sum of RssAnon of all processes, sampled every 10 ms.

With `--tasks`, the database has a single shard and one worker, so that every task is one of a full shard. For each kind of tasks,
the weight of the largest one and the peak of its process are shown. `retrodb/engine/task_memory.py` has a line through these
numbers at two sizes (a base, and bytes per unit of weight), rounded up.

With `--stages`, the commands of a life run one after the other on one database with `--memory`: training and index, the join, its
repair after one document, search, exports and inspection. The database is replicated: half of its shards are linked copies.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.append(
    str(Path(__file__).resolve().parents[1] / "tests")
)  # the makers of documents and records are the tests' too

import process_cost
from process_cost import run_measured
from replicated import replicate
from scale_commands import write_inputs
from scale_databases import build, copy_by_links

from retrodb.bench.machine import environment
from retrodb.memory import MIB
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage

RESULTS = Path(__file__).resolve().parent / "results"
RETRODB = str(Path(sys.executable).with_name("retrodb"))
COMMANDS = {
    "ingest": ("{new}", "ingest {db} {documents} --source made"),
    "embed": ("{ingested}", "embed {db}"),
    "index": ("{embedded}", "index {db}"),
    "dedup": ("{built}", "dedup {db} --against {inputs}/testset.jsonl"),
    "near-duplicates": ("{built}", "dedup {db} --near-duplicates"),
    "tag": ("{built}", "tag {db} --name t --regex kaban"),
    "filter": ("{built}", "filter {db} --reason b --where text~'kaban+lodor'"),
    "neighbours": ("{built}", "neighbours {db}"),
    "export": ("{table}", "export {db} {db}-out"),
    "compact": ("{built}", "compact {db} --min-deleted 0.001"),
    "check": ("{built}", "check {db} --read-data"),
    "exposure": ("{exposed}", "exposure {db} --testset t"),
    "purge": ("{built}", "purge {db} --doc-ids {inputs}/ids.txt --yes"),
    "search": ("{built}", "search {db} kaban"),
    "sql": ("{built}", "sql {db} select+text+from+chunks+order+by+text+limit+5"),
}
"""By name: the state of the database before, and the command; `+` stands for a blank inside a word."""
STAGES = (
    "index {db}",
    "neighbours {db}",
    "ingest {db} {inputs}/one.jsonl --source made",
    "embed {db}",
    "index {db}",
    "neighbours {db} --repair",
    "search {db} kaban",
    "export {db} {db}-arrays --to arrays",
    "export {db} {db}-parquet --to parquet",
    "stats {db}",
    "check {db} --read-data",
    "compact {db} --dry-run",
)
"""What `--stages` runs, in this order, on a database that is embedded and not indexed."""
WITHOUT_WORKERS = ("filter", "search", "sql", "exposure", "stats")
WITHOUT_LIMIT = ("stats",)
SAMPLED = """
import json, os, sys, threading, time
import retrodb.engine.local as local, retrodb.engine.run as run, retrodb.stages.ingest.read_tasks as read_tasks
from retrodb.memory import anonymous_bytes
from retrodb_cli.main import main
read_tasks._MIN_SEGMENT = read_tasks._MAX_SEGMENT
plain = run.run_task
def sampled(opened, task, function):
    peaks, is_over = [anonymous_bytes()], threading.Event()
    def sample():
        while not is_over.wait(0.004):
            peaks.append(anonymous_bytes())
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        return plain(opened, task, function)
    finally:
        is_over.set()
        thread.join()
        with open(os.environ["SAMPLES"], "a") as file:
            file.write(json.dumps([task.kind.stage, task.weight, max(peaks)]) + chr(10))
run.run_task = local.run_task = sampled
main()
"""


class Databases:
    """A database in the states that commands begin with."""

    def __init__(self, folder: Path, num_chunks: int) -> None:
        self.folder, self.inputs = folder, folder / "inputs"
        self.documents = folder / "documents" / f"{num_chunks}.jsonl"
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RETRODB_CACHE_DIR": str(folder / "cache")}
        self.built = build(folder / f"real-{num_chunks}", self.documents, num_chunks, self.run).folder
        write_inputs(self.inputs, self.documents)

    def run(self, arguments: Sequence[str]) -> None:
        """Run a command that is not measured."""
        subprocess.run([RETRODB, *arguments], env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def state(self, name: str) -> Path:
        """The database in a state, made when it is first asked for."""
        folder = self.built.with_name(f"{self.built.name}-{name}")
        if name == "built" or folder.exists():
            return self.built if name == "built" else folder
        if name == "new":
            tokenizer = str(self.documents.with_suffix(".tokenizer.json"))
            self.run(["init", str(folder), "--tokenizer", tokenizer, "--encoder", "hashing:64"])
            return folder
        if name == "doubled":
            copy_by_links(self.state("embedded"), folder)
            replicate(LocalStorage(folder), 1)
            return folder
        copy_by_links(self.state("table") if name == "exposed" else self.built, folder)
        made = {
            "ingested": ["restore", str(folder), "1"],
            "embedded": ["restore", str(folder), "2"],
            "table": ["neighbours", str(folder), "--exact", "--sample", "0.005"],
            "exposed": ["dedup", str(folder), "--against", str(self.inputs / "testset.jsonl"), "--name", "t"],
        }
        self.run(made[name])
        return folder

    def measure(self, name: str, options: Sequence[str]) -> str:
        """The peak of a command in MiB, or its refusal."""
        state, command = COMMANDS[name]
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            copy = Path(scratch, "db")
            copy_by_links(self.state(state.strip("{}")), copy)
            values = {"db": copy, "documents": self.documents, "inputs": self.inputs}
            words = [word.format(**values).replace("+", " ").replace("~", " like ") for word in command.split()]
            takes_workers = name not in WITHOUT_WORKERS
            given = [word for word in options if takes_workers or word not in ("--workers", *"123456789")]
            cost = run_measured([RETRODB, *words, *given], self.environment, 900)
            return cost.error or f"{cost.peak_bytes / MIB:.0f}"

    def stages(self, workers: int, memory_mib: int) -> Iterator[str]:
        """The peak, the processor time and the verdict of each stage, in Markdown. The stages change one copy of the database."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            copy = Path(scratch, "db")
            copy_by_links(self.state("doubled"), copy)
            num_chunks = read_head(LocalStorage(copy)).totals["chunks"]
            yield f"{num_chunks:,} chunks, `--memory {memory_mib}MiB`, {workers} workers."
            yield from ("", "| command | peak, MiB | CPU s | elapsed s | verdict |", "|---|---|---|---|---|")
            for stage in STAGES:
                name, *words = stage.format(db=copy, inputs=self.inputs).split()
                given = [] if name in WITHOUT_WORKERS else ["--workers", str(workers)]
                given += [] if name in WITHOUT_LIMIT else ["--memory", f"{memory_mib}MiB"]
                cost = run_measured([RETRODB, name, *words, *given], self.environment, 3600)
                verdict = cost.error or ("kept" if cost.peak_bytes <= memory_mib * MIB else "broken")
                shown = " ".join(Path(word).name if "/" in word else word for word in words)
                yield (
                    f"| {name} {shown} | {cost.peak_bytes / MIB:.0f} | {cost.cpu_s:.1f} | {cost.elapsed_s:.1f} | {verdict} |"
                )

    def largest_tasks(self) -> Iterator[str]:
        """Of each kind of tasks the largest weight and the peak of its process, on one shard."""
        samples, largest = self.folder / "samples.jsonl", dict[str, tuple[int, int]]()
        samples.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            db = Path(scratch, "db")
            copy_by_links(self.state("new"), db)
            values = {"db": db, "documents": self.documents, "inputs": self.inputs}
            for name, (_, command) in COMMANDS.items():
                words = [word.format(**values).replace("+", " ").replace("~", " like ") for word in command.split()]
                workers = {f"RETRODB_{words[0].upper()}_WORKERS": "1", "SAMPLES": str(samples)}
                done = subprocess.run(
                    [sys.executable, "-c", SAMPLED, *words],
                    env={**self.environment, **workers},
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    print(f"{name}: {done.stderr.strip()}", file=sys.stderr)
        for line in samples.read_text().splitlines():
            stage, weight, peak = json.loads(line)
            largest[stage] = max(largest.get(stage, (0, 0)), (weight, peak))
        yield from ("| tasks | weight | peak, MiB |", "|---|---|---|")
        yield from (f"| {stage} | {weight:,} | {peak / MIB:.0f} |" for stage, (weight, peak) in largest.items())


def table_of(databases: Databases, names: Sequence[str], workers: Sequence[int], memory_mib: int) -> Iterator[str]:
    """The peaks of commands in MiB, in Markdown."""
    heads = [f"{n} {'worker' if n == 1 else 'workers'}" for n in workers]
    yield f"| command | {' | '.join(heads)} | {' | '.join(f'{head}, limit {memory_mib}' for head in heads)} |"
    yield "|" + "---|" * (1 + 2 * len(heads))
    for name in names:
        peaks = [
            databases.measure(name, ["--workers", str(number), *limit])
            for limit in ([], ["--memory", f"{memory_mib}MiB"])
            for number in workers
        ]
        yield f"| {name} | {' | '.join(peaks)} |"


def main() -> None:
    """Measure and print; with --write into `benchmarks/results/`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--memory", type=int, default=512, metavar="MIB")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", metavar="NAMES")
    parser.add_argument("--tasks", action="store_true")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    process_cost.SAMPLE_S = 0.05 if options.stages else 0.01  # more often where commands are short
    folder = options.folder or Path(tempfile.mkdtemp(prefix="retrodb-memory-"))
    try:
        databases = Databases(folder, options.chunks // 2 if options.stages else options.chunks)
        names = options.only.split(",") if options.only else list(COMMANDS)
        if options.tasks:
            rows = databases.largest_tasks()
        elif options.stages:
            rows = databases.stages(options.workers[-1], options.memory)
        else:
            rows = table_of(databases, names, options.workers, options.memory)
        lines = [
            f"# Memory of commands, {options.chunks:,} chunks",
            "",
            *(f"- {name}: {value}" for name, value in environment(1).items()),
            "",
        ]
        for line in rows:
            print(line, flush=True)
            lines.append(line)
        if options.write:
            file = RESULTS / f"{datetime.date.today():%Y-%m-%d}-memory.md"
            file.write_text("\n".join(lines) + "\n")
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
