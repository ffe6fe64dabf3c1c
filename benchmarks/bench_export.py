"""Exports: the MB/s of every format, and how fast a trainer reads the `arrays` export and Megatron's own HDF5 files.

Both readers give the same samples from the same table in the same random order: the tokens of a sequence, and for each of its
chunks k neighbours with their continuations. In each round both are timed in turn, and the ratio is the median over rounds.

    python benchmarks/bench_export.py                                   # made-up documents, about two minutes
    python benchmarks/bench_export.py --database wiki.retrodb --out 2026-11-21-export.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import random
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson

import retrodb
from retrodb.config import EXPORT_FORMATS, ExportParams
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.export.export_source import ExportSource, TablePositions
from retrodb.export.export_tasks import positions_file
from retrodb.export.megatron_samples import plan_samples, write_sample_order
from retrodb.export.positions import ExportPositions
from retrodb.export.record import read_record
from retrodb.retro.data import load_arrays
from retrodb.view.view import SELF

Reader = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""The number of a sequence -> its tokens (l, m), and those of its neighbours (l, K, 2 m)."""


def made_database(folder: Path, documents: int, seed: int) -> Database:
    """Documents of 1 to 2,000 made-up words with a Zipf-like vocabulary, and their neighbours by a hashing encoder."""
    words = [
        f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "io", "u") for c in ("ban", "dor", "fel", "gim", "n")
    ]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(words, weights, k=rng.randint(1, 2000))) for _ in range(documents)]
    (folder / "made.jsonl").write_bytes(
        b"".join(orjson.dumps({"id": str(i), "text": t}) + b"\n" for i, t in enumerate(texts))
    )
    train_byte_bpe(texts[:200], 2000).save(folder / "tokenizer.json")
    database = retrodb.create(folder / "db", tokenizer=str(folder / "tokenizer.json"), encoder="hashing:64")
    database.ingest([folder / "made.jsonl"], source="made")
    database.embed()
    database.index()
    database.neighbours(k=2)
    return database


def arrays_reader(out: Path, length: int, k: int, order: np.ndarray | None = None) -> Reader:
    """Sequences of consecutive rows, or of the rows in the order of Megatron's samples."""
    data = load_arrays(out)

    def read(sequence: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(sequence * length, (sequence + 1) * length)
        rows = rows if order is None else order[rows]
        return data.queries(rows), data.neighbour_values(rows, k)

    return read


def megatron_reader(out: Path, rows: np.ndarray, length: int, k: int) -> Reader:
    """The RetroDataset of megatron-core. The tokens of its samples come from a mapped array, the fastest possible source."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from megatron.core.datasets.retro.db.utils import get_merged_train_dataset
    from megatron.core.datasets.retro.query.retro_dataset import RetroDataset
    from megatron.core.datasets.retro.utils import BlockPathMap

    card = orjson.loads((out / "config.json").read_bytes())
    m = card["retro_gpt_chunk_length"]
    samples = rows[: len(rows) // length * length].reshape(-1, length * m)
    chunks = SimpleNamespace(n_chunks_per_sample=length, sample_dataset=[{"text": sample} for sample in samples])
    folder = out / "query" / card["retro_neighbor_dirs"]["train"]
    dataset = RetroDataset(
        num_queried_samples=len(samples),
        num_neighbors=k,
        num_retrieved_chunks=2,
        block_size=card["retro_block_size"],
        db_dataset=get_merged_train_dataset(str(out), m, card["retro_gpt_eod_token"]),
        chunk_dataset=chunks,
        neighbor_path_map=BlockPathMap.from_dir(str(folder), card["retro_block_size"]),
    )

    def read(sequence: int) -> tuple[np.ndarray, np.ndarray]:
        sample = dataset[sequence]
        return sample["text"].reshape(length, m), sample["neighbor_tokens"]

    return read


def megatron_order(database: Database, seq_length: int, folder: Path) -> np.ndarray:
    """The rows of the table in the order of Megatron's samples, at the positions of the `megatron` export in a folder."""
    table, out = database.neighbour_table(), folder / "megatron"
    positions = ExportPositions.open(positions_file(out, SELF), read_record(out).positions[SELF])
    source = ExportSource(table, TablePositions(positions, positions), ExportParams(seq_length=seq_length), folder)
    order = folder / "order.npy"
    write_sample_order(order, {"train": source}, plan_samples({"train": source}, source.params), "train")
    return np.load(order, mmap_mode="r")


def samples_per_s(read: Reader, order: Sequence[int]) -> float:
    start = time.perf_counter()
    for sequence in order:
        read(sequence)
    return len(order) / (time.perf_counter() - start)


def check_readers_agree(ours: Reader, theirs: Reader, folder: Path, order: Sequence[int]) -> None:
    """The two readers have to agree except for padding, or the benchmark compares different work."""
    pad = orjson.loads((folder / "arrays" / "meta.json").read_bytes())["pad_token"]
    their_pad = orjson.loads((folder / "megatron" / "config.json").read_bytes())["retro_gpt_eod_token"]
    for sequence in order:
        (tokens, values), (their_tokens, their_values) = ours(sequence), theirs(sequence)
        expected = np.where(values == pad, their_pad, values)
        if tokens.shape != their_tokens.shape or not np.array_equal(expected, their_values):
            raise SystemExit(f"sequence {sequence}: the readers disagree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="with a neighbour table of its own chunks; made-up documents without it")
    parser.add_argument("--documents", type=int, default=1500, help="number of made-up documents")
    parser.add_argument("--formats", nargs="+", default=EXPORT_FORMATS, choices=EXPORT_FORMATS)
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--k", type=int, default=2, help="neighbours to read per chunk")
    parser.add_argument("--samples", type=int, default=60, help="samples per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = (
            retrodb.open(options.database)
            if options.database
            else made_database(folder, options.documents, options.seed)
        )
        lines = [
            *environment(options, database),
            *writing(database, folder, options),
            *reading(database, folder, options),
        ]
    lines.append(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    print("\n".join(lines))
    if options.out:
        with options.out.open("a") as file:
            file.write("\n".join([*lines, ""]))


def environment(options: argparse.Namespace, database: Database) -> list[str]:
    packages = ("numpy", "pyarrow", "h5py", "megatron-core")
    versions = {package: installed(package) for package in packages}
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions}, seed {options.seed}"
    )
    table = database.neighbour_table()
    chunks = sum(record.num_chunks for record in table.view.chunks.ranges)
    return [machine, f"{chunks:,} chunks, {len(table.rows()):,} rows, k {table.k}", ""]


def installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def writing(database: Database, folder: Path, options: argparse.Namespace) -> list[str]:
    lines = ["| format | MB | s | MB/s |", "|---|---|---|---|"]
    for name in [name for name in EXPORT_FORMATS if name in (*options.formats, "arrays", "megatron")]:
        start = time.perf_counter()
        seq_length = options.seq_length if name == "megatron" else None
        size = database.export(folder / name, to=name, is_registered=False, seq_length=seq_length).size_bytes / 1e6
        elapsed = time.perf_counter() - start
        lines.append(f"| {name} | {size:,.1f} | {elapsed:.2f} | {size / elapsed:,.1f} |")
    return [*lines, ""]


def reading(database: Database, folder: Path, options: argparse.Namespace) -> list[str]:
    rows: Any = np.load(folder / "arrays" / "query_tokens.npy", mmap_mode="r")
    length = options.seq_length // rows.shape[1]
    ours = arrays_reader(folder / "arrays", length, options.k)
    if installed("megatron-core") == "-":
        return ["megatron-core is not installed, so reading is not compared"]
    order = megatron_order(database, options.seq_length, folder)
    theirs = megatron_reader(folder / "megatron", np.asarray(rows)[order], length, options.k)
    rng = np.random.default_rng(options.seed)
    count = len(order) // length
    in_order = arrays_reader(folder / "arrays", length, options.k, order)
    check_readers_agree(in_order, theirs, folder, rng.integers(count, size=10).tolist())
    rates = []
    for _ in range(options.rounds):
        chosen = rng.integers(count, size=options.samples).tolist()
        rates.append((samples_per_s(ours, chosen), samples_per_s(theirs, chosen)))
    our_rate, their_rate = np.median(np.array(rates), axis=0)
    ratio = float(np.median([a / b for a, b in rates]))
    return [
        f"random sequences of {options.seq_length} tokens, {options.k} neighbours per chunk, one process:",
        f"arrays {our_rate:,.0f} samples/s, Megatron's HDF5 reader {their_rate:,.1f} samples/s, ratio {ratio:,.1f}"
        f" (of rounds: {min(a / b for a, b in rates):,.1f} to {max(a / b for a, b in rates):,.1f})",
    ]


if __name__ == "__main__":
    main()
