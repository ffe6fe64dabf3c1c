"""Planning costs files: with eight times as many shards, no command itself opens more files of chunks or documents.

A command may read all records of its snapshot. What it does for each shard happens in tasks, and all tasks together read
each file a fixed number of times. `NOT_YET` lists the commands that still break this rule; take out what you fix.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from made_documents import made_text, write_documents
from replicated import replicate

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.store.storage import LocalStorage

from .watched import Reads, WatchedStorage, watch_tasks

SHARDS, TIMES = 2, 8
DOCUMENT_WORDS = 150
DOCUMENT_CHUNKS = 3  # of a document, and so of a shard
K = 2  # neighbours of a row of the table


@dataclass(frozen=True)
class Planned:
    """A command, and what it needs on its copy of the database."""

    run: Callable[[Database, Path], object]  # given a folder with the inputs; outputs may be written there
    before: Callable[[Database, Path], object] | None = None  # done first, and not watched
    table: bool = False  # whether the copy has a neighbour table
    opens: frozenset[str] = frozenset()  # kinds of files of which it opens each, without reading what is in the rows
    at_most: int = 0  # files of each kind that it may open, however few shards there are


def ingest_one(db: Database, inputs: Path) -> object:
    return db.ingest([inputs / "one.jsonl"], source="made")


def ingest_copies(db: Database, inputs: Path) -> object:
    return db.ingest([inputs / "copies.jsonl"], source="copies")


def embed_one(db: Database, inputs: Path) -> None:
    ingest_one(db, inputs)
    db.embed()


def index_one(db: Database, inputs: Path) -> None:
    embed_one(db, inputs)
    db.index()


def filter_one(db: Database, inputs: Path) -> object:
    return db.filter(doc_ids=["one"], reason="unwanted")


def filter_all(db: Database, inputs: Path) -> object:
    return db.filter(where="num_chars > 0", reason="unwanted")


def delete_one(db: Database, inputs: Path) -> None:
    index_one(db, inputs)
    filter_one(db, inputs)


def repair_one(db: Database, inputs: Path) -> None:
    index_one(db, inputs)
    db.repair_neighbours()


def add_testset(db: Database, inputs: Path) -> object:
    return db.dedup([inputs / "test.jsonl"])


def add_export(db: Database, inputs: Path) -> object:
    return db.export(inputs / "exported", to="arrays")


def copy_all(db: Database, inputs: Path) -> object:
    return db.copy_to(inputs / "copied")


def copy_and_add_one(db: Database, inputs: Path) -> None:
    copy_all(db, inputs)
    ingest_one(db, inputs)


def export_to(to: str) -> Planned:
    return Planned(lambda db, inputs: db.export(inputs / to, to=to), table=True)


def search(db: Database, inputs: Path) -> object:
    return db.search([made_text("query", 30)], k=1)


def search_where(db: Database, inputs: Path) -> object:
    return db.search([made_text("query", 30)], k=1, where="doc_id = 'd0'")


PARTS = frozenset({"parts", "codebooks"})
NEAREST = PARTS | {"vectors"}  # the candidates of a query may have their vectors in any file
COMMANDS: dict[str, Planned] = {
    "open": Planned(lambda db, inputs: (db.view().manifest, db.view().shards)),
    "searcher": Planned(lambda db, inputs: db.searcher(), opens=PARTS),
    "search": Planned(search, opens=NEAREST),
    "search where": Planned(search_where, opens=NEAREST | {"documents"}),
    "search after a filter": Planned(search, delete_one, opens=NEAREST),
    "open table": Planned(lambda db, inputs: db.neighbour_table(), table=True),
    "show neighbours": Planned(lambda db, inputs: db.show_neighbours(0), table=True, at_most=1 + K),
    "stats": Planned(lambda db, inputs: db.stats()),
    "spaces": Planned(lambda db, inputs: db.spaces()),
    "testsets": Planned(lambda db, inputs: db.testsets(), add_testset),
    "snapshots": Planned(lambda db, inputs: db.snapshots()),
    "check": Planned(lambda db, inputs: db.check()),
    "check reading": Planned(lambda db, inputs: db.check(read_data=True)),
    "check reading after a filter": Planned(lambda db, inputs: db.check(read_data=True), filter_all),
    "diff": Planned(lambda db, inputs: db.diff(0, db.view().snapshot.number)),
    "diff of a filter": Planned(lambda db, inputs: db.diff(head(db) - 1, head(db)), delete_one),
    "sql of shards": Planned(lambda db, inputs: db.sql("select count(*) from shards")),
    "ingest nothing": Planned(lambda db, inputs: db.ingest([inputs / "documents.jsonl"], source="made")),
    "ingest": Planned(ingest_one),
    "ingest changed": Planned(lambda db, inputs: db.ingest([inputs / "changed.jsonl"], source="made", mirror=True)),
    "ingest screened": Planned(ingest_one, add_testset),
    "dedup": Planned(add_testset),
    "dedup nothing": Planned(lambda db, inputs: db.dedup(), add_testset),
    "near-duplicates": Planned(lambda db, inputs: db.near_duplicates(), ingest_copies),
    "tag": Planned(lambda db, inputs: db.tag("words", regex="ban")),
    "filter ids": Planned(filter_one, ingest_one),
    "filter where": Planned(lambda db, inputs: db.filter(where="num_chars < 0", reason="unwanted")),
    "filter all": Planned(filter_all),
    "undelete": Planned(lambda db, inputs: db.undelete("unwanted"), delete_one),
    "undelete all": Planned(lambda db, inputs: db.undelete("unwanted"), filter_all),
    "embed nothing": Planned(lambda db, inputs: db.embed()),
    "embed": Planned(lambda db, inputs: db.embed(), ingest_one),
    "embed new space": Planned(lambda db, inputs: db.embed(space="second", encoder="hashing:16")),
    "index nothing": Planned(lambda db, inputs: db.index()),
    "index": Planned(lambda db, inputs: db.index(), embed_one),
    "index training": Planned(lambda db, inputs: db.index(retrain=True)),
    "neighbours": Planned(lambda db, inputs: db.neighbours(table="another")),
    "repair nothing": Planned(lambda db, inputs: db.repair_neighbours(), table=True),
    "repair": Planned(lambda db, inputs: db.repair_neighbours(), index_one, table=True),
    "edit": Planned(lambda db, inputs: db.edit_neighbours(0, ban=1), table=True),
    "export arrays": export_to("arrays"),
    "export parquet": export_to("parquet"),
    "export lucidrains": export_to("lucidrains"),
    "export norlund": export_to("norlund"),
    "export nemo": export_to("nemo"),
    "export dpr": export_to("dpr"),
    "export atlas": export_to("atlas"),
    "refresh": Planned(lambda db, inputs: db.refresh_export(inputs / "exported"), add_export, table=True),
    "exposure": Planned(lambda db, inputs: db.exposure("test"), add_testset, table=True),
    "compact planned": Planned(lambda db, inputs: db.compact(dry_run=True)),
    "compact": Planned(lambda db, inputs: db.compact()),
    "compact planned with a table": Planned(lambda db, inputs: db.compact(dry_run=True), table=True),
    "compact with a table": Planned(lambda db, inputs: db.compact(), table=True),
    "compact planned with deleted neighbours": Planned(
        lambda db, inputs: db.compact(dry_run=True), filter_all, table=True
    ),
    "compact with deleted neighbours": Planned(lambda db, inputs: db.compact(), filter_all, table=True),
    "compact planned with other deletions": Planned(
        lambda db, inputs: db.compact(dry_run=True), delete_one, table=True
    ),
    "compact with patches": Planned(lambda db, inputs: db.compact(), repair_one, table=True),
    "purge": Planned(lambda db, inputs: db.purge(["one"]), ingest_one),
    "purge planned": Planned(lambda db, inputs: db.purge(["one"], dry_run=True), ingest_one),
    "gc": Planned(lambda db, inputs: db.gc(), delete_one),
    "pin": Planned(lambda db, inputs: db.pin(name="kept")),
    "restore": Planned(lambda db, inputs: db.restore(head(db) - 1), delete_one),
    "copy planned": Planned(lambda db, inputs: db.copy_to(inputs / "copied", dry_run=True)),
    "copy nothing": Planned(copy_all, copy_all),
    "copy what is new": Planned(copy_all, copy_and_add_one),
    "update nothing": Planned(lambda db, inputs: db.update(inputs / "recipe.toml")),
}

NOT_YET: dict[str, str] = {}
"""Commands that still open such files of every shard before any task runs, or without tasks."""

NOT_YET_LINEAR: dict[str, str] = {}
"""Commands whose tasks together still read files more often than they have to."""


def head(db: Database) -> int:
    return db.view().snapshot.number


class Grown:
    """The same documents once and eight times, each with and without a neighbour table, and copies of them to work on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs = folder, folder / "inputs"
        self.inputs.mkdir()
        self._reads: dict[str, tuple[Reads, Reads]] = {}
        documents = {f"d{seed}": made_text(seed, DOCUMENT_WORDS) for seed in range(SHARDS)}
        source = write_documents(self.inputs / "documents.jsonl", documents)
        write_documents(self.inputs / "copies.jsonl", documents)
        write_documents(self.inputs / "changed.jsonl", {"d0": made_text("changed", DOCUMENT_WORDS)})
        write_documents(self.inputs / "one.jsonl", {"one": made_text("one", DOCUMENT_WORDS)})
        write_documents(self.inputs / "test.jsonl", {"t": made_text("t", 40)})
        (self.inputs / "recipe.toml").write_text(f'[sources.made]\ninputs = ["{source}"]\n')
        tokenizer = self.inputs / "tokenizer.json"
        train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(tokenizer)
        db = retrodb.create(folder / "1", tokenizer=str(tokenizer), encoder="hashing:32")
        db.ingest([source], source="made")
        db.embed()
        db.index()
        assert len(db.view().shards) == SHARDS
        copy(folder / "1", folder / str(TIMES))
        replicate(LocalStorage(folder / str(TIMES)), TIMES - 1)
        for times in (1, TIMES):
            copy(folder / str(times), folder / f"{times}-table")
            retrodb.open(folder / f"{times}-table").neighbours(k=K)
        assert len(retrodb.open(folder / str(TIMES)).view().shards) == TIMES * SHARDS

    def reads(self, name: str) -> tuple[Reads, Reads]:
        """What a command reads on copies of the small and of the large database."""
        if name not in self._reads:
            self._reads[name] = self._run(name, 1), self._run(name, TIMES)
        return self._reads[name]

    def _run(self, name: str, times: int) -> Reads:
        command, scratch = COMMANDS[name], self.folder / f"{name}-{times}"
        copy(self.inputs, scratch / "inputs")
        copy(self.folder / (f"{times}-table" if command.table else str(times)), scratch / "db")
        if command.before:
            command.before(retrodb.open(scratch / "db"), scratch / "inputs")
        storage = WatchedStorage(scratch / "db")
        command.run(Database(storage), scratch / "inputs")
        shutil.rmtree(scratch)
        return storage.reads


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("runs", "tmp"))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in ("shard", "tokenize"):  # every document becomes a shard
            monkeypatch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", DOCUMENT_CHUNKS)
        monkeypatch.setattr(
            "retrodb.stages.index.merge.choose_merges", lambda sizes: []
        )  # they have tests of their own
        # What a purge remembers of a file depends on the file's age: here no file is old enough.
        monkeypatch.setattr("retrodb.maintain.purge.search_task._SETTLED_NS", 1 << 62)
        monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        watch_tasks(monkeypatch)
        yield Grown(tmp_path_factory.mktemp("grown"))


def commands(not_yet: dict[str, str]) -> list[ParameterSet]:
    """All commands; those that are listed must fail."""
    assert not_yet.keys() <= COMMANDS.keys()

    def marks(name: str) -> list[pytest.MarkDecorator]:
        reason = not_yet.get(name)
        return [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)]

    return [pytest.param(name, marks=marks(name)) for name in COMMANDS]


def test_a_database_of_copied_shards_is_sound(grown: Grown) -> None:
    once, eightfold = (retrodb.open(grown.folder / str(times)) for times in (1, TIMES))
    assert len(eightfold.view().shards) == TIMES * len(once.view().shards) == TIMES * SHARDS
    assert eightfold.stats().num_live_chunks == TIMES * once.stats().num_live_chunks
    assert not eightfold.check(read_data=True).damaged
    ids = np.arange(once.view().chunks.end)
    texts = eightfold.view().chunks.texts(np.concatenate([ids, ids + (TIMES - 1) * len(ids)]))
    assert texts[: len(ids)] == texts[len(ids) :] == once.view().chunks.texts(ids)


@pytest.mark.parametrize("name", commands(NOT_YET))
def test_no_command_opens_a_file_for_every_shard(name: str, grown: Grown) -> None:
    small, large = grown.reads(name)
    before, after, sizes = small.planned(), large.planned(), large.planned_bytes()
    more = {
        kind: f"{before[kind]} files, then {count} ({sizes[kind]:,} bytes)"
        for kind, count in after.items()
        if count > max(before[kind], COMMANDS[name].at_most) and kind not in COMMANDS[name].opens
    }
    assert not more


@pytest.mark.parametrize("name", commands(NOT_YET_LINEAR))
def test_tasks_read_every_file_a_fixed_number_of_times(name: str, grown: Grown) -> None:
    small, large = grown.reads(name)
    before, after = small.in_tasks(), large.in_tasks()
    more = {
        kind: f"opened {before[kind]} times by tasks, then {count} times"
        for kind, count in after.items()
        if count > TIMES * max(1, before[kind])
    }
    assert not more
