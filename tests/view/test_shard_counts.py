"""The counts in the manifest are what a look at every chunk gives, after any sequence of commands."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.errors import RetroDBError
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.coverage import Coverage
from retrodb.view.shard_counts import num_embeddable_chunks, num_embedded_chunks, num_pending_chunks
from retrodb.view.view import View

Make = Callable[..., Database]


def counted(database: Database) -> dict[str, object]:
    """All sums, from the layouts and masks of every shard."""
    view = database.view()
    sums: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    coverage = view.query_vectors("self", "default")
    for record in view.chunks.ranges:
        layout, live = view.chunks.layout(record), view.chunks.live_mask(*record.span)
        before = np.concatenate(([0], np.cumsum(live)))
        embeddable = view.embeddable_mask(*record.span)
        sums.update(
            documents=len(layout.first_row),
            live_documents=int((before[layout.first_row + layout.num_chunks] > before[layout.first_row]).sum()),
            chunks=int(view.chunks.present_mask(*record.span).sum()),
            live_chunks=int(live.sum()),
            tokens=int(layout.num_tokens.sum()),
            embeddable=int(embeddable.sum()),
            embedded=int((embeddable & coverage.covered_mask(*record.span)).sum()),
        )
        masks = view.chunks.tombstones.deleted_by_reason(*record.span)
        reasons.update({reason: int(mask.sum()) for reason, mask in masks.items()})
    names = ("documents", "live_documents", "chunks", "live_chunks", "tokens", "embeddable", "embedded")
    return {
        **{name: sums[name] for name in names},
        "reasons": {reason: count for reason, count in sorted(reasons.items()) if count},
        "covered": {key: _live_chunks_of(view, key) for key in COVERED},
    }


def _live_chunks_of(view: View, key: tuple[str, str]) -> list[int]:
    """How many live chunks of each shard some file of a kind and name holds, from every one of its bitmaps."""
    records, chunks = view.manifest.files(*key), view.chunks
    return [
        int((chunks.live_mask(*span) & Coverage(records, view.files).covered_mask(*span)).sum())
        for span in (view.shards.record(number).span for number in range(len(view.shards)))
    ]


def stored(database: Database) -> dict[str, object]:
    """The same sums, from the manifest."""
    view, stats = database.view(), database.stats()
    return {
        "documents": stats.num_documents,
        "live_documents": stats.num_live_documents,
        "chunks": stats.num_chunks,
        "live_chunks": stats.num_live_chunks,
        "tokens": stats.num_tokens,
        "embeddable": num_embeddable_chunks(view),
        "embedded": num_embedded_chunks(view, "default"),
        "reasons": stats.num_deleted_chunks_by_reason,
        "covered": {key: view.manifest.num_covered(*key).tolist() for key in COVERED},
    }


COVERED = [
    ("vectors", "default"),
    ("parts", "default"),
    ("neighbours", "self"),
    ("vectors", "other"),
    ("parts", "other"),
]
"""Kinds and names of files whose live chunks are counted: some are there only after some commands."""


COMMANDS: dict[str, Callable[[Database, random.Random, Path], object]] = {
    "ingest": lambda db, rng, path: db.ingest([write(rng, path)], source=rng.choice("ab")),
    "mirror": lambda db, rng, path: db.ingest([write(rng, path)], source=rng.choice("ab"), mirror=True),
    "filter": lambda db, rng, path: db.filter(
        where=f"num_tokens % 5 = {rng.randrange(5)}", reason=rng.choice(["x", "y"])
    ),
    "undelete": lambda db, rng, path: db.undelete(reason=rng.choice(["x", "y"])),
    "dedup": lambda db, rng, path: db.dedup(
        [write_documents(path, {"t": made_text(rng.randrange(30), 60)})], name="exam"
    ),
    "near": lambda db, rng, path: db.near_duplicates(),
    "embed": lambda db, rng, path: db.embed(),
    "index": lambda db, rng, path: db.index(retrain=rng.random() < 0.2),
    "neighbours": lambda db, rng, path: db.neighbours(k=2, exact=True),
    "repair": lambda db, rng, path: db.repair_neighbours(),
    "other space": lambda db, rng, path: db.embed(
        space="other", encoder="hashing:16", keep_vectors=False, factory="IVF2,SQ8"
    ),
    "drop space": lambda db, rng, path: db.drop_space("other", with_tables=True),
    "compact": lambda db, rng, path: db.compact(min_deleted=0),
    "restore": lambda db, rng, path: db.restore(rng.randrange(db.view().snapshot.number + 1)),
    "purge": lambda db, rng, path: db.purge([f"d{rng.randrange(30)}"], ignore_unknown=True),
}


def write(rng: random.Random, path: Path) -> Path:
    seeds = rng.sample(range(30), 6)
    return write_documents(path, {f"d{seed}": made_text(seed, 20 + seed * 3 + rng.randrange(2)) for seed in seeds})


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 60))])
def test_counts_hold_after_any_commands(make_database: Make, tmp_path: Path, seed: int) -> None:
    rng, database = random.Random(seed), make_database({f"d{n}": made_text(n, 90) for n in range(8)})
    database.embed()
    for step in range(18):
        name = rng.choice(["filter", *COMMANDS])
        try:
            COMMANDS[name](database, rng, tmp_path / f"{step}.jsonl")
        except RetroDBError:
            continue  # such as nothing to undelete
        assert stored(database) == counted(database), (step, name)
        assert num_pending_chunks(database.view(), "default") >= 0


def test_stats_look_at_no_chunk(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make_database({f"d{n}": made_text(n, 90) for n in range(8)})
    database.embed()
    database.index()
    database.neighbours(k=2)
    database.filter(doc_ids=["d3"], reason="x")

    def refuse(*others: object) -> None:
        raise AssertionError("stats look at chunks or documents")

    for name in ("_read_layout", "_read_documents", "live_mask", "is_live", "texts"):
        monkeypatch.setattr(ChunkSet, name, refuse)
    stats = database.stats()
    assert stats.num_live_documents == 7
    assert stats.tables[0].num_rows < stats.num_chunks
