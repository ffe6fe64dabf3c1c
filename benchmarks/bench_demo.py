"""Every stage of a build on the standard library's documentation, each as its own command: rates and peak memory.

    python benchmarks/bench_demo.py [--documents N] [--encoder NAME] [--out benchmarks/results/DATE-demo.md]

Each stage is a `retrodb` process of its own, and its peak memory is that of its largest process, workers included. Rates are per
second of elapsed time, including the start of the process, as a user waits for it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from retrodb.config import InitParams
from retrodb.corpus.stdlib_docs import is_held_out, stdlib_documents

_MAIN = "from retrodb_cli.main import main; raise SystemExit(main())"
WITHOUT_CORPUS = ("init", "queries add", "search")  # their time does not depend on the corpus
LIBRARIES = ("numpy", "pyarrow", "tokenizers", "tiktoken", "torch", "faiss-cpu", "numba")


@dataclass(frozen=True)
class MeasuredStage:
    """The cost of one stage."""

    stage: str
    elapsed_s: float
    cpu_s: float  # of the process and its workers
    peak_bytes: int  # resident, of the largest process
    result: dict[str, Any]  # JSON that the command printed


def run(stage: str, *arguments: str) -> MeasuredStage:
    """Run `retrodb STAGE ARGUMENTS --json` and wait for it."""
    command = [sys.executable, "-c", _MAIN, *stage.split(), *arguments, "--json"]
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
        _, status, usage = os.wait4(os.posix_spawn(sys.executable, command, os.environ, file_actions=actions), 0)
        elapsed = time.monotonic() - started
        output.seek(0)
        lines = output.read().splitlines()
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    results = [json.loads(line) for line in lines if line]
    cpu = usage.ru_utime + usage.ru_stime
    return MeasuredStage(stage, elapsed, cpu, usage.ru_maxrss * 1024, results[-1] if results else {})


def build(folder: Path, documents: list[tuple[str, str]], encoder: str) -> list[MeasuredStage]:
    """The stages of a build, in order."""
    database, corpus, test = folder / "bench.retrodb", folder / "corpus.jsonl", folder / "test.jsonl"
    for path, held_out in ((corpus, False), (test, True)):
        rows = [{"id": i, "text": text} for i, text in documents if is_held_out(i) == held_out]
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    db, tokenizer = str(database), str(folder / "tokenizer.json")
    return [
        run("tokenizer train", str(corpus), "--out", tokenizer, "--vocab-size", "16000"),
        run("init", db, "--tokenizer", tokenizer, "--encoder", encoder),
        run("ingest", db, str(corpus), "--source", "python"),
        run("dedup", db, "--against", str(test), "--name", "test"),
        run("queries add", db, str(test), "--name", "test"),
        run("embed", db),
        run("index", db),
        run("neighbours", db),
        run("export", db, str(folder / "export"), "--to", "parquet"),
        run("search", db, "open a file for reading"),
        run("check", db, "--read-data"),
    ]


def environment() -> str:
    """The machine and the library versions of the measurement."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load {load:.1f} at the start; Python {platform.python_version()}, {libraries}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def report(measured: list[MeasuredStage], num_documents: int, num_bytes: int, num_chunks: int) -> str:
    """The table, in Markdown."""
    lines = [
        "| stage | elapsed s | CPU s | documents/s | chunks/s | MB/s of text | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in measured:
        rates = (num_documents / stage.elapsed_s, num_chunks / stage.elapsed_s, num_bytes / 1e6 / stage.elapsed_s)
        shown = " | ".join(f"{rate:,.2f}" if rate < 10 else f"{rate:,.0f}" for rate in rates)
        shown = "- | - | -" if stage.stage in WITHOUT_CORPUS else shown
        peak = stage.peak_bytes / 1e6
        lines.append(f"| {stage.stage} | {stage.elapsed_s:.1f} | {stage.cpu_s:.1f} | {shown} | {peak:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the report if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, help="maximum number of documents")
    parser.add_argument("--encoder", default=InitParams.encoder)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    machine = environment()
    limit = f" --documents {options.documents}" if options.documents else ""
    documents = list(stdlib_documents())[: options.documents]
    corpus = [text for doc_id, text in documents if not is_held_out(doc_id)]
    with tempfile.TemporaryDirectory() as folder:
        measured = build(Path(folder), documents, options.encoder)
    num_bytes = sum(len(text.encode()) for text in corpus)
    num_chunks = next(stage.result["chunks"] for stage in measured if stage.stage == "ingest")
    text = "\n".join(
        [
            f"# Every stage on the standard library's documentation, {datetime.date.today().isoformat()}",
            "",
            f"`python benchmarks/bench_demo.py{limit} --encoder {options.encoder}`",
            "",
            f"{machine}.",
            "",
            f"{len(corpus):,} documents, {num_bytes / 1e6:.1f} MB, {num_chunks:,} chunks of 64 tokens.",
            "",
            report(measured, len(corpus), num_bytes, num_chunks),
            "",
        ]
    )
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
