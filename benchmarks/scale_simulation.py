"""A database of 1.56e10 chunks in made-up records: what opening, planning and a commit cost, and how large its records are.

A first small shard is real, embedded and indexed, with a table. Of the others, their vectors, index parts and rows only the
records exist. Bitmaps and tombstones are as large as real ones: a shard has partial last chunks without a vector, and 5%
scattered deletions. A command that opens a file of a shard fails with its name, which shows that its planning needs more than
records. One shard is newer than the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from made_documents import made_text, write_documents
from made_up import change, file, id_of, shard
from process_cost import run_measured
from pyroaring import BitMap
from scale_commands import command_line, environment_of_commands
from scale_databases import write_made_documents

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import IndexEntry, StoredPoint, TableEntry, entry_key
from retrodb.format.kinds import path_of
from retrodb.format.part_files import PART_FILES
from retrodb.format.records import OP_DROP_FILE, CountsRecord, CoveredRecord, DropRecord, FileRecord
from retrodb.format.rows import RowSet, serialize_rows
from retrodb.stages.neighbours.compared_states import ComparedStates
from retrodb.store.commit import commit
from retrodb.store.publish import publish
from retrodb.store.row_files import store_rows
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage
from retrodb.view.compared_sets import ComparedRange, write_compared
from retrodb.view.tombstones import tombstone, write_tombstones
from retrodb.view.view import SELF, View

SHARDS = 15_000
SHARD_CHUNKS = 1_040_000
SHARDS_OF_A_COMMIT = 250
REAL_CHUNKS, FACTORY = 45_000, "IVF1024,SQ8"  # of the first shard, whose index all others are under
NO_VECTOR = (
    0.0075  # of the chunks: every 16th is the last of its document, and one of eight of these is too short for a key
)
DELETED = 0.05
LIMIT_S, LIMIT_BYTES = 10, 2 << 30

_OPEN = "import sys, retrodb; view = retrodb.open(sys.argv[1]).view(); "
_COMMIT = (
    "import sys; from made_up import change, shard, id_of; from retrodb.store.commit import commit; "
    "from retrodb.store.snapshots import read_head, read_snapshot; from retrodb.store.storage import LocalStorage; "
    "storage = LocalStorage(sys.argv[1]); head = read_head(storage); "
)
_SHARD = "shards=[shard(id_of('{0}'), 'made', 1000)]"
STEPS: dict[str, tuple[str, ...]] = {
    "open: manifest and shards": ("program", _OPEN + "view.manifest; view.shards"),
    "open: chunks, with what is deleted": ("program", _OPEN + "view.chunks"),
    "open: files of vectors and parts by id": (
        "program",
        _OPEN + "view.coverage('vectors', 'default'); view.coverage('parts', 'default')",
    ),
    "plan: ranges of a neighbour table": (
        "program",
        _OPEN + "from retrodb.stages.neighbours.table_rows import spans_of; spans_of(view, 'self')",
    ),
    "plan: merge of index parts": (
        "program",
        _OPEN + "from retrodb.stages.index.merge import plan_merge; plan_merge(view, 'default')",
    ),
    "snapshots": ("snapshots", "{db}"),
    "pin": ("pin", "{db}", "--name", "kept", "--dry-run"),
    "gc": ("gc", "{db}", "--dry-run"),
    "stats": ("stats", "{db}"),
    "diff of two snapshots": ("diff", "{db}", "{before}", "{head}"),
    "dedup": ("dedup", "{db}", "--against", "{inputs}/testset.jsonl", "--dry-run"),
    "filter": ("filter", "{db}", "--where", "num_chars < 0", "--dry-run"),
    "embed": ("embed", "{db}", "--dry-run"),
    "index": ("index", "{db}", "--dry-run"),
    "compact": ("compact", "{db}", "--dry-run"),
    "neighbours": ("neighbours", "{db}", "--table", "other", "--dry-run"),
    "repair": ("neighbours", "{db}", "--repair", "--dry-run"),
    # Last: nothing has counted this shard, so the commands above would stop at it.
    "commit of a shard": ("program", _COMMIT + f"commit(storage, head, change('a', {_SHARD.format('a')}))"),
    "commit of a file, rebased": (
        "program",
        _COMMIT + "from made_up import file; base = read_snapshot(storage, head.number - 1); "
        "commit(storage, base, change('b', files=[file('vectors', 'vectors/default/' + id_of('b') + '.npy', "
        "name='default', first=0, count=1000)]))",
    ),
}
"""Commands, and programs with the database as argument: each runs in a process of its own."""


def simulate(folder: Path, num_shards: int, environment: dict[str, str]) -> Iterator[str]:
    """Makes the records in a folder, and gives the lines of a table in Markdown."""
    root = folder / "db"
    tokenizer = folder / "tokenizer.json"
    train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(tokenizer)
    db = retrodb.create(root, tokenizer=str(tokenizer), encoder="hashing:64")
    write_made_documents(folder / "real.jsonl", REAL_CHUNKS)
    db.ingest([folder / "real.jsonl"], source="made")
    db.embed()
    db.index(factory=FACTORY)
    db.neighbours()
    write_documents(folder / "testset.jsonl", {"t": made_text("t", 100)})
    commit_records(LocalStorage(root), num_shards)
    commit_table(db.view())
    commit_records(LocalStorage(root), 1, "late")
    yield f"{num_shards:,} shards with {num_shards * SHARD_CHUNKS:,} chunks; files of records:"
    yield ""
    for kind in ("snapshots", "manifests", "tombstones", "rows"):
        sizes = [path.stat().st_size for path in (root / kind).rglob("*") if path.is_file()]
        if sizes:
            yield f"- {kind}: {len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB"
    yield from ("", "| step | CPU | memory | under 10 s and 2 GiB |", "|---|---|---|---|")
    head = read_head(LocalStorage(root)).number
    tests = Path(__file__).resolve().parents[1] / "tests"
    environment = {**environment_of_commands(folder / "cache", environment), "PYTHONPATH": str(tests)}
    values = {"db": str(root), "inputs": str(folder), "head": str(head), "before": str(head - 1)}
    for name, arguments in STEPS.items():
        cost = run_measured(command_line(arguments, **values), environment, 600)
        is_under = cost.cpu_s < LIMIT_S and cost.peak_bytes < LIMIT_BYTES
        verdict = f"fails: {cost.error.strip()[:100]}" if cost.error else "yes" if is_under else "no"
        yield f"| {name} | {cost.cpu_s:.2f} s | {cost.peak_bytes / 1e6:,.0f} MB | {verdict} |"


def commit_records(storage: LocalStorage, num_shards: int, name: str = "shard") -> None:
    """Commits shards with their vectors, index parts and deletions, some at a time."""
    random, first = np.random.default_rng(0), read_head(storage).next_chunk
    for start in range(0, num_shards, SHARDS_OF_A_COMMIT):
        numbers = range(start, min(start + SHARDS_OF_A_COMMIT, num_shards))
        firsts = [first + number * SHARD_CHUNKS for number in numbers]
        made = change(
            id_of(f"commit {name} {start}"),
            shards=[shard(id_of(f"{name} {n}"), f"source{n % 7}", SHARD_CHUNKS, SHARD_CHUNKS // 16) for n in numbers],
            files=[
                *(record for f in firsts for record in _covering(storage, f, random)),
                _deletions(storage, firsts, random),
            ],
            shard_counts=[record for f in firsts for record in _counts(f)],
        )
        commit(storage, read_head(storage), made)


def commit_table(view: View) -> None:
    """Commits the records of a neighbour table of all shards, as up to date as a repair leaves it.

    Its compared sets are real files, but their bitmaps are empty: only those of a range that has changed are read.
    """
    entry = view.snapshot.existing(TableEntry, SELF)
    params, vectors = entry.params, view.manifest.files("vectors", "default")
    states = ComparedStates(view, SELF, "default", params)
    num_rows = {record.span: record.num_rows for record in vectors}
    nothing = serialize_rows(np.empty(0, np.int64))
    ranges = [
        ComparedRange(side, span, states.of(side, span), num_rows[span], nothing)
        for side, spans in states.spans.items()
        for span in spans
    ]
    paths = [(path_of("joined", name=SELF, task=id_of(f"joined {n}")), n) for n in range(0, len(ranges), 32)]
    joined = [
        publish(view.storage, "joined", path, partial(write_compared, ranges=ranges[n : n + 32]), name=SELF)
        for path, n in paths
    ]
    known = {record.first_chunk for record in view.manifest.files("neighbours", SELF)}
    new = [record for record in vectors if record.first_chunk not in known]
    rows = [
        replace(r, kind=kind, name=SELF, path=path_of(kind, name=SELF, task=id_of(f"rows {r.path}")))
        for r in new
        for kind in ("neighbours", "naming")
    ]
    old = [DropRecord(OP_DROP_FILE, record.path) for record in view.manifest.files("joined", SELF)]
    covered = [CoveredRecord("neighbours", SELF, record.first_chunk, record.num_rows) for record in new]
    point = StoredPoint(target=params.recall, nprobe=entry.nprobe, recall=params.recall, k=params.k)
    index = replace(view.snapshot.existing(IndexEntry, "default"), operating_points=(point,))
    entries = {entry_key(TableEntry, SELF): entry, entry_key(IndexEntry, "default"): index}
    made = change("table", files=[*joined, *rows], drops=old, shard_counts=covered, entries=entries)
    commit(view.storage, view.snapshot, made)


def _covering(storage: LocalStorage, first: int, random: np.random.Generator) -> Iterator[FileRecord]:
    """The vectors of a shard, and the files of its index part."""
    task, absent = id_of(f"covering {first}"), BitMap(_rows(random, NO_VECTOR))
    rows = RowSet.from_rows(BitMap(range(SHARD_CHUNKS)) - absent, SHARD_CHUNKS)
    digest = store_rows(storage, rows)
    paths = [("vectors", path_of("vectors", name="default", task=task))]
    paths += [("parts", path_of("parts", name="default", task=task, file=name)) for name in PART_FILES]
    for kind, path in paths:
        record = file(kind, path, name="default", first=first, count=SHARD_CHUNKS)
        yield replace(record, rows=digest, num_rows=len(rows))


def _rows(random: np.random.Generator, fraction: float) -> Int64Array:
    """About so many of the rows of a shard, scattered and ascending."""
    return np.unique(random.integers(0, SHARD_CHUNKS, round(fraction * SHARD_CHUNKS)))


def _counts(first: int) -> tuple[CountsRecord | CoveredRecord, ...]:
    """About what is live of a shard, what is deleted, and what has vectors: the numbers are made up like all else."""
    num_deleted = round(DELETED * SHARD_CHUNKS)
    num_live, num_keys = SHARD_CHUNKS - num_deleted, round((1 - NO_VECTOR) * (SHARD_CHUNKS - num_deleted))
    live = CountsRecord(first, "", num_live, SHARD_CHUNKS // 16, num_keys, 64 * SHARD_CHUNKS)
    covered = (CoveredRecord(kind, "default", first, num_keys) for kind in ("vectors", "parts"))
    return live, CountsRecord(first, "old", num_deleted, 0), *covered


def _deletions(storage: LocalStorage, firsts: Sequence[int], random: np.random.Generator) -> FileRecord:
    tombstones = [tombstone(first, SHARD_CHUNKS, "old", _rows(random, DELETED)) for first in firsts]
    path = path_of("tombstones", task=id_of(f"tombstones {firsts[0]}"))
    return publish(storage, "tombstones", path, partial(write_tombstones, tombstones=tombstones))
