"""Leak scan and MinHash against datasketch and a plain Python n-gram loop, on the same text in the same run.

    python benchmarks/bench_dedup.py [--data FOLDER] [--megabytes 80] [--table-shingles 10000000] [--out FILE]

The text is `classic-books` and `wikipedia-en` of the corpora folder. Rates are per second of CPU time of one core, the best of
three, because CPU time is the cost of a trillion tokens. Only two workers are compared with one in elapsed time.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import json
import multiprocessing
import os
import platform
import random
import re
import resource
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasketch
import numba
import numpy as np
import pyarrow as pa
import xxhash

from retrodb.dedup.exact_scan import scan_texts
from retrodb.dedup.minhash import signatures
from retrodb.dedup.shingle_table import ShingleTable, build_shingle_table, load_shingle_table, save_shingle_table
from retrodb.dedup.shingles import NGRAM
from retrodb.format.parquet import iterate_row_groups, write_table

SEED = 0
DEFAULT_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
PEER_BYTES = 4_000_000  # of the sample for the slow peers


def corpus(data: Path, size: int) -> list[str]:
    """Books and encyclopaedia articles, shuffled, about `size` bytes."""
    books = subprocess.run(
        ["zstd", "-dc", "--long=27", data / "classic-books.md.tar.zst"], check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(books.stdout)) as archive:
        files = (archive.extractfile(m) for m in archive.getmembers() if m.isfile())
        texts = [file.read().decode() for file in files if file]
    articles = subprocess.run(["zstd", "-dc", data / "wikipedia-en.jsonl.zst"], check=True, capture_output=True)
    texts += [json.loads(line)["text"] for line in articles.stdout.splitlines() if line]
    random.Random(SEED).shuffle(texts)
    chosen, total = [], 0
    for text in texts:
        if total < size:
            chosen.append(text)
            total += len(text.encode())
    return chosen


def made_table(texts: list[str], num_shingles: int) -> ShingleTable:
    """A test set of about this many shingles: words as frequent as in the text, in random order."""
    vocabulary = " ".join(texts[:200]).split()
    words = np.random.default_rng(SEED).choice(
        np.array(vocabulary, object), num_shingles + 1200 * num_shingles // 10_000
    )
    size = 10_000 + NGRAM - 1
    items = [" ".join(words[i : i + size]) for i in range(0, len(words), size)]
    return build_shingle_table(pa.array(items, pa.large_string()), [str(i) for i in range(len(items))])


def cyrillic(text: str) -> str:
    letters = "абцдефгхийклмнопярстужвьызАБЦДЕФГХИЙКЛМНОПЯРСТУЖВЬЫЗ"
    return text.translate(str.maketrans("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", letters))


def chinese(text: str) -> str:
    """One or two ideographs for each word, and full-width punctuation."""
    marks = {",": "，", ".": "。"}
    pieces = re.findall(r"\w+|[,.]", text)
    return "".join(
        marks.get(p) or "".join(chr(0x4E00 + hash_of(p) // k % 6000) for k in range(1, 2 + len(p) // 5)) for p in pieces
    )


def hash_of(word: str) -> int:
    return xxhash.xxh32_intdigest(word.encode())


def batches(path: Path) -> Iterator[pa.LargeStringArray]:
    for table in iterate_row_groups(path, ["text"]):
        yield table["text"].combine_chunks().cast(pa.large_string())


def scan_parquet(path: Path, table: ShingleTable) -> None:
    for texts in batches(path):
        scan_texts(texts, table)


def scan_and_sketch_parquet(path: Path, table: ShingleTable) -> None:
    for texts in batches(path):
        scan_texts(texts, table)
        signatures(texts, 128)


def word_ngrams(text: str) -> list[bytes]:
    words = re.findall(r"[^\W_]+", text.lower())
    return [" ".join(words[i : i + NGRAM]).encode() for i in range(len(words) - NGRAM + 1)]


def datasketch_bulk(texts: list[str]) -> None:
    datasketch.MinHash.bulk(map(word_ngrams, texts), num_perm=128, hashfunc=xxhash.xxh32_intdigest)


def python_loop(texts: list[str], keys: set[int]) -> None:
    for text in texts:
        sum(xxhash.xxh64_intdigest(gram) in keys for gram in word_ngrams(text))


def rate(size: int, work: Callable[[], object], repeats: int = 3) -> float:
    """The best MB of text per CPU second."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return size / best / 1e6


def time_of_workers(num_workers: int, parts: list[Path], folder: Path) -> tuple[float, float]:
    """Elapsed and CPU seconds for some processes to scan all parts, each with the same mapped table, without start-up."""
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        tasks = [(part, folder) for part in parts]
        pool.starmap(scan_task, tasks, chunksize=1)  # loads compiled code and pages
        start = time.perf_counter()
        cpu = sum(pool.starmap(scan_task, tasks, chunksize=1))
        return time.perf_counter() - start, cpu


def scan_task(part: Path, folder: Path) -> float:
    start = time.process_time()
    scan_parquet(part, load_shingle_table(folder))
    return time.process_time() - start


def write_parquet(texts: list[str], path: Path) -> int:
    write_table(path, pa.table({"text": pa.array(texts, pa.large_string())}), row_group_rows=512)
    return sum(len(text.encode()) for text in texts)


def run(data: Path, megabytes: int, table_shingles: int) -> Iterator[str]:
    """The lines of the report, one after each measurement."""
    yield f"## dedup, {datetime.date.today()}\n"
    versions = f"numpy {np.__version__}, numba {numba.__version__}, pyarrow {pa.__version__}"
    peers = f"datasketch {datasketch.__version__}, xxhash {xxhash.VERSION}"
    yield f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, {peers}"
    yield f"load average before: {', '.join(f'{load:.1f}' for load in os.getloadavg())} (other jobs ran at the same time)"
    texts = corpus(data, megabytes * 1_000_000)
    array, table = pa.array(texts, pa.large_string()), made_table(texts, table_shingles)
    num_words = int(scan_texts(array, table).num_words.sum())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "english.parquet"
        size = write_parquet(texts, path)
        sizes = f"{len(texts):,} documents, {size / 1e6:,.1f} MB, {num_words:,} words"
        yield f"seed {SEED}; {sizes}; test table of {len(table.keys):,} shingles\n"
        yield "| one core | MB/s |\n|---|---|"
        yield row("scan, text in memory", alone := rate(size, lambda: scan_texts(array, table)))
        yield row("scan from Parquet", parquet := rate(size, lambda: scan_parquet(path, table)))
        yield row("scan from Parquet + MinHash 128", both := rate(size, lambda: scan_and_sketch_parquet(path, table)))
        yield row("MinHash 128, text in memory", rate(size, lambda: signatures(array, 128)))
        ratios = []
        for kind, change in (("Cyrillic", cyrillic), ("Chinese", chinese)):
            changed = folder / f"{kind}.parquet"
            changed_size = write_parquet([change(text) for text in texts[: len(texts) // 4]], changed)
            value = rate(changed_size, functools.partial(scan_parquet, changed, table))
            ratios.append(f"{kind} {value / parquet:.2f}")
            yield row(f"scan from Parquet, {kind}", value)
        sample = [text[:20_000] for text in texts[: PEER_BYTES // 2_000]]
        sample_size = sum(len(text.encode()) for text in sample)
        keys = set(table.keys[:1_000_000].tolist())
        yield row("datasketch bulk, xxh32, 128", peer := rate(sample_size, lambda: datasketch_bulk(sample), 1))
        yield row("Python loop, xxh64 in a set", loop := rate(sample_size, lambda: python_loop(sample, keys), 1))
        one, two = workers(texts, table, folder)
    words = num_words / size  # million words a MB
    yield f"\n- {alone * words:,.1f} million words/s in memory, {parquet * words:,.1f} from Parquet"
    yield f"- scan from Parquet / datasketch {parquet / peer:.1f}, with MinHash {both / peer:.1f}"
    yield f"- scan from Parquet / Python loop {parquet / loop:.1f}"
    yield f"- non-ASCII / English: {', '.join(ratios)}"
    yield f"- two workers / one: {one[0] / two[0]:.2f} elapsed, {2 * one[1] / two[1]:.2f} by CPU time (a core for each)"
    hours = 4.4e6 / parquet / 3600
    yield f"- 10^12 tokens, about 4.4 TB of text: 4.4e6 MB / {parquet:,.0f} MB/s / 3600 = {hours:,.1f} core-hours"
    yield f"- load average after: {', '.join(f'{load:.1f}' for load in os.getloadavg())}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield f"- peak memory {peak:,.2f} GiB with all text and the table"


def row(name: str, value: float) -> str:
    return f"| {name} | {value:,.1f} |"


def workers(texts: list[str], table: ShingleTable, folder: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    """Elapsed and CPU seconds of one and of two processes that share the table."""
    (folder / "table").mkdir()
    save_shingle_table(table, folder / "table")
    parts = [folder / f"part-{i}.parquet" for i in range(8)]
    for i, part in enumerate(parts):
        write_parquet(texts[i::8], part)
    return time_of_workers(1, parts, folder / "table"), time_of_workers(2, parts, folder / "table")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the real corpora")
    parser.add_argument("--megabytes", type=int, default=80, help="text to scan")
    parser.add_argument("--table-shingles", type=int, default=10_000_000, help="shingles of the test set")
    parser.add_argument("--out", type=Path, help="file to append the report to, such as benchmarks/results/<date>.md")
    arguments = parser.parse_args()
    for line in run(arguments.data, arguments.megabytes, arguments.table_shingles):
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
