"""Maintaining a built database: filter to search, an update of 1% and a table's repair compared with a rebuild, check.

    python benchmarks/bench_maintain.py --documents wikipedia.jsonl.zst --tokenizer gpt2 [--encoder hashing:128]
        [--limit N] [--database DIR] [--workers N] [--folder DIR] [--out benchmarks/results/DATE-maintain.md]

The documents (JSON Lines with id and text) are shuffled by a seed. 98% are built into a database, and a quarter of these into a
second one, to show what depends on the size. An update adds 1%. Then 1% of the documents are filtered out, the last 1% is added,
and the table is repaired and rebuilt. With `--database` a built one is copied by hard links (its files are never changed), and
nothing is compared with building it. Build and update are single runs; filter is the median of five.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import resource
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import retrodb
from retrodb.bench.machine import environment, gemm_gflops, timed
from retrodb.config import dump_toml
from retrodb.corpus.streams import open_input
from retrodb.database import Database
from retrodb.view.where import documents_where

TRIALS = 5
WHERE = "num_chars % 1009 = 0 and metadata->>'title' like '%q%'"


class Corpus:
    """The documents in slices, each a file that a recipe can name."""

    def __init__(self, path: Path, limit: int | None, seed: int, folder: Path) -> None:
        compression = {".zst": "zstd", ".gz": "gzip"}.get(path.suffix, "none")
        with open_input(path, compression) as stream:
            lines = [line for line in stream.read().splitlines() if line]
        random.Random(seed).shuffle(lines)
        lines = lines[:limit]
        hundredth = max(1, len(lines) // 100)
        cuts = {"first": lines[hundredth : 2 * hundredth], "last": lines[:hundredth]}
        rest = lines[2 * hundredth :]
        cuts |= {"quarter": rest[: len(rest) // 4], "bulk": rest[len(rest) // 4 :]}
        self.num_documents = {name: len(cut) for name, cut in cuts.items()}
        for name, cut in cuts.items():
            (folder / f"{name}.jsonl").write_bytes(b"\n".join(cut) + b"\n")
        self.folder = folder

    def recipe(self, *slices: str) -> Path:
        path = self.folder / "recipe.toml"
        source = {"inputs": [f"{name}.jsonl" for name in slices]}
        path.write_text(dump_toml({"sources": {"bench": source}, "neighbours": {"self": {"k": 2}}}))
        return path


def update(db: Database, recipe: Path) -> dict[str, float]:
    """Seconds of every stage, and their sum."""
    result = db.update(recipe)
    if result.exit_code:
        raise SystemExit(f"the update failed: {[step.error for step in result.steps if step.error]}")
    stages: dict[str, float] = {}
    for step in result.steps:
        stages[step.stage] = stages.get(step.stage, 0.0) + step.elapsed_s
    return {**stages, "all": result.elapsed_s}


def filter_to_search(path: Path, seed: int) -> Iterator[tuple[str, str]]:
    """Time from a filter by document name to the first search that does not find it, and the scan of a condition."""
    db = retrodb.open(path)
    rows = db.sql("select source, doc_id, first_chunk from documents order by doc_id").rows
    commits, searches = [], []
    for source, doc_id, first in random.Random(seed).sample(rows, TRIALS):
        [text] = db.view().chunks.texts(np.array([first]))
        assert doc_id in {hit.doc_id for hit in db.search([text], k=5)[0]}
        result, commit_s = timed(lambda name=f"{source}/{doc_id}": db.filter(doc_ids=[name], reason="bench"))
        assert result.num_documents == 1
        hits, search_s = timed(lambda text=text: retrodb.open(path).search([text], k=5)[0])
        assert doc_id not in {hit.doc_id for hit in hits}
        commits.append(commit_s)
        searches.append(search_s)
    both = [commit + search for commit, search in zip(commits, searches, strict=True)]
    _, scan_s = timed(lambda: documents_where(db.view(), WHERE))
    chunks = db.stats().num_chunks
    median = statistics.median
    yield (
        f"filter to search, {chunks:,} chunks",
        f"{median(both):.2f} s (commit {median(commits):.2f}, open and search {median(searches):.2f})",
    )
    yield f"scan of a condition over metadata, {chunks:,} chunks", f"{len(rows) / scan_s:,.0f} documents/s"


def compare_update_with_build(
    db: Database, corpus: Corpus, built: Sequence[str], build: dict[str, float] | None
) -> Iterator[tuple[str, str]]:
    added = update(db, corpus.recipe(*built, "first"))
    nothing = update(db, corpus.recipe(*built, "first"))
    shown = ", ".join(f"{stage} {s:.1f}" for stage, s in added.items() if stage != "all")
    yield "update of +1%", f"{added['all']:.1f} s ({shown})"
    yield "update with nothing new", f"{nothing['all']:.2f} s"
    if build:
        shown = ", ".join(f"{stage} {s:.1f}" for stage, s in build.items() if stage != "all")
        yield "build", f"{build['all']:.1f} s ({shown})"
        yield "build / update of +1%", f"{build['all'] / added['all']:.1f}"


def compare_repair_with_rebuild(
    db: Database, corpus: Corpus, built: Sequence[str], seed: int
) -> Iterator[tuple[str, str]]:
    names = [
        f"{source}/{doc_id}" for source, doc_id in db.sql("select source, doc_id from documents order by doc_id").rows
    ]
    db.filter(doc_ids=random.Random(seed).sample(names, max(1, len(names) // 100)), reason="bench")
    db.ingest([corpus.folder / f"{name}.jsonl" for name in (*built, "first", "last")], source="bench")
    db.embed()
    db.index()
    [repaired], repair_s = timed(lambda: db.repair_neighbours(table="self"))
    rebuilt, rebuild_s = timed(lambda: db.neighbours(table="rebuilt", k=2))
    changed = f"{repaired.num_recomputed:,} rows recomputed, {repaired.num_improved:,} improved"
    yield "repair of a table, 1% deleted and 1% added", f"{repair_s:.1f} s ({changed} of {repaired.num_rows:,})"
    yield (
        "rebuild of the table",
        f"{rebuild_s:.1f} s ({rebuilt.nprobe} lists per row, recall {rebuilt.recall_expected:.3f})",
    )
    yield "rebuild / repair", f"{rebuild_s / repair_s:.1f}"


def check(db: Database) -> Iterator[tuple[str, str]]:
    result, elapsed_s = timed(lambda: db.check(read_data=True))
    assert not result.damaged
    size_mb = result.size_bytes / 1e6
    yield "check --read-data", f"{size_mb / elapsed_s:,.0f} MB/s ({size_mb:,.0f} MB)"
    yield "check", f"{timed(db.check)[1]:.2f} s"


def measure(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str]]:
    corpus = Corpus(options.documents, options.limit, options.seed, folder)
    made = {"tokenizer": options.tokenizer, "encoder": options.encoder}
    build, built = None, ("quarter", "bulk")
    if options.database:
        shutil.copytree(options.database, folder / "db", copy_function=os.link)
        built = ()
    else:
        retrodb.create(folder / "small", **made)
        update(retrodb.open(folder / "small", workers=options.workers), corpus.recipe("quarter"))
        yield from filter_to_search(folder / "small", options.seed)
        retrodb.create(folder / "db", **made)
        build = update(retrodb.open(folder / "db", workers=options.workers), corpus.recipe(*built))
    yield from filter_to_search(folder / "db", options.seed)
    db = retrodb.open(folder / "db", workers=options.workers)
    yield from compare_update_with_build(db, corpus, built, build)
    yield from compare_repair_with_rebuild(db, corpus, built, options.seed)
    yield from check(db)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True, help="JSON Lines with id and text; plain, .gz or .zst")
    parser.add_argument("--tokenizer", help="for a new database")
    parser.add_argument("--encoder", default="hashing:128", help="for a new database")
    parser.add_argument("--database", type=Path, help="a built database to copy")
    parser.add_argument("--limit", type=int, help="maximum number of documents")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="working folder, on the same file system as --database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    if not (options.tokenizer or options.database):
        parser.error("--tokenizer or --database is needed")
    machine = ", ".join(f"{name} {value}" for name, value in environment(options.workers).items())
    lines = [f"# Maintaining a database, {datetime.date.today().isoformat()}", ""]
    given = {
        name: value for name, value in vars(options).items() if value is not None and name not in ("folder", "out")
    }
    lines += [
        ", ".join(f"{name} {Path(value).name if isinstance(value, Path) else value}" for name, value in given.items())
        + ".",
        "",
    ]
    lines += [
        f"{machine}; load {os.getloadavg()[0]:.1f}; float32 product {gemm_gflops():.0f} GFLOP/s before.",
        "",
        "| measurement | result |",
        "|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for what, result in measure(options, Path(folder)):
            lines.append(f"| {what} | {result} |")
            print(lines[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    load = os.getloadavg()[0]
    lines += ["", f"Peak memory {peak:.2f} GiB; float32 product {gemm_gflops():.0f} GFLOP/s after, load {load:.1f}."]
    print("\n".join(lines[-2:]))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
