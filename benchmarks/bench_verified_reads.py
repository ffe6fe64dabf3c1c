"""What it costs to verify what is read: blocks of three sizes, and the part of a join and of an export.

The first table is about one file of vectors, mapped and in the page cache: processor time of the first read of random rows and
of all rows in a process, with digests of blocks and without. The second one is about commands, each in a process of its own, in
turn with verification and without: the processor time of both, and the time inside of the verification.

    python benchmarks/bench_verified_reads.py                       # a file of 800 MB and 100,000 chunks, some minutes
    python benchmarks/bench_verified_reads.py --folder F --out benchmarks/results/2026-11-27-verified-reads.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # made_documents, replicated

import retrodb
from retrodb.format import blocks
from retrodb.format.arrays import save_array
from retrodb.format.records import FileRecord
from retrodb.store import verified_bytes, verify
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles

DIM = 384
BLOCK_SIZES = (1 << 16, 1 << 18, 1 << 20)
GATHERED_ROWS = 2048
COMMANDS = ("neighbours", "export", "search")


def measured(work: Callable[[], object]) -> float:
    """Processor seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def block_report(folder: Path, num_rows: int, rounds: int, seed: int) -> Iterator[str]:
    """Processor time of first reads for each size of blocks."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((num_rows, DIM), dtype=np.float32).astype(np.float16)
    storage = LocalStorage(folder)
    yield f"One file of {num_rows:,} x {DIM} float16, {vectors.nbytes / 1e6:.0f} MB. Medians of {rounds} rounds.\n"
    yield f"| block | digests | {GATHERED_ROWS:,} rows, ms | unverified, ms | all, ms | summed, ms | publishing, s |"
    yield "|---|---|---|---|---|---|---|"
    for block_bytes in BLOCK_SIZES:
        blocks.BLOCK_BYTES = block_bytes
        publishing, record = _published(storage, vectors)
        times: list[list[float]] = []
        for _ in range(rounds):
            rows = rng.integers(0, num_rows, GATHERED_ROWS)
            times.append([_first(storage, record, lambda array, rows=rows: array[rows])])
            plain = np.load(storage.local(record.path), mmap_mode="r")
            times[-1].append(measured(lambda plain=plain, rows=rows: plain[rows]))
            times[-1].append(_first(storage, record, lambda array: array.whole()))
            times[-1].append(measured(lambda plain=plain: np.asarray(plain).view(np.int64).sum()))
        gathered, plain_s, whole, summed = (1000 * median(column) for column in zip(*times, strict=True))
        assert record.blocks_path is not None
        size = storage.local(record.blocks_path).stat().st_size
        name = f"{block_bytes >> 10} KiB"
        times_ms = f"{gathered:.1f} | {plain_s:.1f} | {whole:.0f} | {summed:.0f}"
        yield f"| {name} | {size / 1000:.1f} kB | {times_ms} | {publishing:.2f} |"
    blocks.BLOCK_BYTES = BLOCK_SIZES[0]


def _published(storage: LocalStorage, vectors: np.ndarray) -> tuple[float, FileRecord]:
    start = time.process_time()
    record = publish(storage, "vectors", "vectors/s/a.npy", lambda local: save_array(local, vectors))
    return time.process_time() - start, record


def _first(storage: LocalStorage, record: FileRecord, read: Callable[[Any], object]) -> float:
    """Of a read in a process that has verified nothing."""
    verified_bytes.blocks_of.cache_clear()
    return measured(lambda: read(VerifiedFiles(storage).array(record)))


def command_report(database: Path, folder: Path, rounds: int) -> Iterator[str]:
    """Processor time of commands with verification and without, in turn."""
    yield "| command | verified, s | not verified, s | ratio of medians | inside of the verification | bytes verified |"
    yield "|---|---|---|---|---|---|"
    for command in COMMANDS:
        results: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
        for _ in range(rounds):
            for mode, found in results.items():
                copy = folder / "copy"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(
                    database, copy, copy_function=os.link, ignore=shutil.ignore_patterns("runs", "locks", "tmp")
                )
                found.append(_child(command, mode, copy, folder))
        on, off = (median(result["cpu_s"] for result in results[mode]) for mode in ("on", "off"))
        fraction = median(result["verification_s"] / result["cpu_s"] for result in results["on"])
        size = results["on"][0]["bytes"] / 1e6
        yield f"| {command} | {on:.2f} | {off:.2f} | {on / off:.3f} | {fraction:.2%} | {size:.0f} MB |"


def _child(command: str, mode: str, database: Path, folder: Path) -> dict[str, float]:
    arguments = [sys.executable, __file__, "--child", command, "--mode", mode, "--database", str(database)]
    shutil.rmtree(folder / "out", ignore_errors=True)
    done = subprocess.run([*arguments, "--folder", str(folder)], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


class Verification:
    """Counts the processor time inside of the verification of this process, or switches the verification off."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.size_bytes = 0
        self._depth = 0

    def watch(self) -> None:
        """Measure every entry to the verification; calls inside of another one are not counted twice."""
        for owner, name in _ENTRIES:
            setattr(owner, name, self._timed(getattr(owner, name)))
        real = verified_bytes.xxhash.xxh3_64_digest

        def counting(data: Any) -> bytes:
            self.size_bytes += len(data)
            return real(data)

        verified_bytes.xxhash.xxh3_64_digest = counting

    @staticmethod
    def switch_off() -> None:
        """Verify nothing."""
        for owner, name in _ENTRIES:
            if name == "whole":
                setattr(owner, name, lambda self: self.data)
            else:
                setattr(owner, name, lambda *_: None)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self._depth += 1
            start = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.thread_time() - start

        return timed


_ENTRIES: tuple[tuple[Any, str], ...] = (
    (verified_bytes.VerifiedBytes, "declare"),
    (verified_bytes.VerifiedBytes, "whole"),
    (VerifiedFiles, "_verify_whole"),
    (VerifiedFiles, "_give_digests"),
    (verify, "_verify_footer"),
)


def run_child(command: str, mode: str, database: Path, folder: Path) -> None:
    """One command in this process; prints its processor time."""
    verification = Verification()
    if mode == "off":
        verification.switch_off()
    db = retrodb.open(database, workers=1)
    start = time.process_time()
    if mode == "on":
        verification.watch()
    if command == "neighbours":
        db.neighbours(k=4, table="measured", device="cpu")
    elif command == "export":
        db.export(folder / "out", to="arrays", is_registered=False)
    else:
        db.search(["the words of one question"], k=10)
    total = time.process_time() - start
    print(json.dumps({"cpu_s": total, "verification_s": verification.seconds, "bytes": verification.size_bytes}))


def report(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Both tables."""
    from scale_databases import build

    yield "# Verified reads, 2026-11-27\n"
    yield f"    python benchmarks/bench_verified_reads.py --rows {options.rows} --chunks {options.chunks}\n"
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "xxhash")}
    load = os.getloadavg()[0]
    yield f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, {versions}, seed {options.seed}\n"
    yield "## Blocks\n"
    yield from block_report(folder / "file", options.rows, options.rounds, options.seed)
    program = Path(sys.executable).with_name("retrodb")
    run = lambda arguments: subprocess.run([program, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: E731
    database = build(folder / "db", folder / "documents.jsonl", options.chunks, run)
    db = retrodb.open(database.folder, workers=1)
    if "table/self" not in db.view().snapshot.entries:
        db.neighbours(k=2, device="cpu")
    size = sum(record.digest.size_bytes for record in db.view().manifest.all_files())
    yield f"\n## Commands\n\n{database.num_chunks:,} chunks, {size / 1e6:.0f} MB of live files, one worker\n"
    yield from command_report(database.folder, folder, options.rounds)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="Rows of the file of vectors.")
    parser.add_argument("--chunks", type=int, default=100_000, help="Chunks of the database.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Folder to work in, where the database is kept.")
    parser.add_argument("--out", type=Path, help="File for the report, such as benchmarks/results/<date>.md.")
    parser.add_argument("--child", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("on", "off"), help=argparse.SUPPRESS)
    parser.add_argument("--database", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child, options.mode, options.database, options.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for line in report(options, options.folder or Path(temporary)):
            print(line, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
