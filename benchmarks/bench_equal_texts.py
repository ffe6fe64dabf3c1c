"""The join of a database in which one text is in every document: each copy of it probes the list in which all copies are.

    python benchmarks/bench_equal_texts.py [--documents 1000 2000 4000 8000] [--write]

A licence of about six chunks precedes the text of each document. The join runs in a new process, once as it is and once without
the links between equal rows; both tables have to have the same bytes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the makers of documents are the tests' too

from made_documents import made_text, write_documents
from process_cost import run_measured
from scale_databases import copy_by_links

import retrodb
from retrodb.bench.machine import environment
from retrodb.corpus.train_tokenizer import train_byte_bpe

RESULTS = Path(__file__).resolve().parent / "results"
LICENCE_WORDS, OWN_WORDS = 200, 150
LIMIT_S = 3600
_PROGRAM = """
import sys, retrodb, retrodb.ann.list_rows
if __name__ == "__main__":
    if sys.argv[2] == "without":
        retrodb.ann.list_rows.LEAST_LINKED = 1 << 62
    retrodb.open(sys.argv[1]).neighbours(exclude=["document"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", nargs="+", type=int, default=[1000, 2000, 4000, 8000])
    parser.add_argument("--write", action="store_true", help="write the report into benchmarks/results/")
    args = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    command = f"python benchmarks/bench_equal_texts.py --documents {' '.join(map(str, args.documents))}"
    machine = ", ".join(f"{name} {value}" for name, value in environment(1).items())
    lines = [f"# Joins of equal texts, {date}", "", f"    {command}", "", machine, ""]
    for line in lines:
        print(line)
    with tempfile.TemporaryDirectory() as folder:
        for line in _report(Path(folder), args.documents):
            print(line, flush=True)
            lines.append(line)
    if args.write:
        (RESULTS / f"{date}-equal-texts.md").write_text("\n".join(lines) + "\n")


def _report(folder: Path, sizes: list[int]) -> Iterator[str]:
    yield "| documents | chunks | CPU | CPU without links | ratio |"
    yield "|---|---|---|---|---|"
    for number in sizes:
        database, costs, digests = _made(folder, number), [], set()
        for links in ("with", "without"):
            copy_by_links(database, copy := folder / f"{number}-{links}")
            cost = run_measured([sys.executable, "-c", _PROGRAM, str(copy), links], dict(os.environ), LIMIT_S)
            if cost.error:
                raise SystemExit(cost.error)
            costs.append(cost.cpu_s)
            digests.add(_digest(copy))
        if len(digests) > 1:
            raise SystemExit("the links changed the table")
        num_chunks = retrodb.open(database).view().chunks.end
        yield f"| {number:,} | {num_chunks:,} | {costs[0]:.1f} s | {costs[1]:.1f} s | {costs[1] / costs[0]:.1f} |"


def _made(folder: Path, number: int) -> Path:
    """A database of so many documents, which begin with the same text."""
    licence = made_text("licence", LICENCE_WORDS)
    documents = {str(seed): f"{licence}\n{made_text(seed, OWN_WORDS)}" for seed in range(number)}
    tokenizer = folder / "tokenizer.json"
    train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(tokenizer)
    database = retrodb.create(folder / str(number), tokenizer=str(tokenizer), encoder="hashing:64")
    database.ingest([write_documents(folder / "documents.jsonl", documents)], source="made")
    database.embed()
    database.index(factory="IVF64,SQ8")
    return folder / str(number)


def _digest(database: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((database / "neighbours").rglob("*.parquet")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
