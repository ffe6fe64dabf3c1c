"""Every storage operation of every stage fails in every way; the database stays whole and the work can be ended.

Afterwards the database opens and shows exactly the old or the new version, and the same command run again ends in the bytes of
a run that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faulty_storage import SURVIVED, Crash, FaultyStorage, faults_of
from made_up import CLOCK

from retrodb.config import DedupParams, IndexParams, IngestParams, InitParams, NeighboursParams
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.errors import NotADatabaseError, RetroDBError
from retrodb.format.kinds import path_of
from retrodb.stages.context import Context
from retrodb.stages.dedup.command import run_dedup
from retrodb.stages.deletion.filter import run_filter
from retrodb.stages.embed.command import run_embed
from retrodb.stages.embed.space_encoder import EncoderHardware
from retrodb.stages.index.command import run_index
from retrodb.stages.ingest.command import run_ingest
from retrodb.stages.init import run_init
from retrodb.stages.neighbours.command import run_neighbours
from retrodb.stages.neighbours.edit import run_edit_neighbours
from retrodb.stages.neighbours.repair import run_repair_neighbours
from retrodb.store.digest import digest_file
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import read_head, snapshot_numbers
from retrodb.store.storage import LocalStorage, Storage
from retrodb.view.neighbour_table import NeighbourTable

Command = Callable[[Context], object]
State = dict[str, bytes]

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards quietly box a jumping giraffe near old mills"


@dataclass
class Laboratory:
    """Copies of a database before and after each command."""

    folder: Path
    commands: dict[str, Command]

    def before(self, command: str) -> Path:
        """The database that the command is run on; made by running the ones before it."""
        names = list(self.commands)
        place = names.index(command)
        return self.folder / "empty" if place == 0 else self.after(names[place - 1])

    def after(self, command: str) -> Path:
        """The database after an undisturbed run."""
        path = self.folder / f"after {command}"
        if not path.exists():
            copy(self.before(command), path)
            self.commands[command](context(LocalStorage(path)))
        return path


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    folder = tmp_path_factory.mktemp("faults")
    made = Laboratory(folder, commands(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODB_CACHE_DIR", str(folder / "cache"))
        # Thousands of runs: none of them is a power failure.
        patch.setattr("retrodb.store.storage._sync_file", lambda path: None)
        yield made


def commands(folder: Path) -> dict[str, Command]:
    """The commands under test, in the order of a build, on texts so small that thousands of runs take seconds."""
    words = WORDS.split()
    texts = [" ".join(words[i:] + words[:i] + [f"number {i}"] * 6) for i in range(8)]
    train_byte_bpe(texts, 300).save(folder / "tokenizer.json")
    write_lines(folder / "input.jsonl", [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)] + [{"id": "x"}])
    write_lines(folder / "test.jsonl", [{"id": "t", "text": texts[3]}])
    init = InitParams(str(folder / "tokenizer.json"), chunk_tokens=16, min_key_tokens=2, encoder="hashing:32")
    ingest = IngestParams("s", holdout=0.3, max_reject_rate=0.5)
    return {
        "init": lambda c: run_init(c, init),
        "ingest": lambda c: run_ingest(c, [str(folder / "input.jsonl")], ingest),
        "dedup": lambda c: run_dedup(c, [folder / "test.jsonl"], DedupParams()),
        "embed": lambda c: run_embed(c, {}, EncoderHardware(threads=1)),
        "index": lambda c: run_index(c, IndexParams()),
        "neighbours": lambda c: run_neighbours(c, NeighboursParams(k=2, spare_neighbours=1)),
        "edit": lambda c: run_edit_neighbours(c, 0, ban=neighbour_of(c, 0)),
        "filter": lambda c: run_filter(c, doc_ids=["d4", "d5", "d6", "d7"], reason="gone"),
        "repair": run_repair_neighbours,
    }


def neighbour_of(context: Context, row: int) -> int:
    """What stands first in the row, edited or not."""
    ids, _ = NeighbourTable(context.view()).stored(np.array([row]))
    return int(ids[0, 0])


def write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("\n".join(json.dumps(record) for record in records))


def context(storage: Storage) -> Context:
    return Context(storage, clock=CLOCK)


def copy(source: Path, target: Path) -> None:
    """By hard links: files are written once."""
    if source.exists():
        shutil.copytree(source, target, copy_function=os.link)


def state(storage: Storage) -> State:
    """All snapshots, and the digests of all files that the head names: what a reader can see. {} for no database."""
    try:
        head = read_head(storage)
    except NotADatabaseError:
        return {}
    paths = [path_of("manifests", digest=ref.digest) for ref in head.segments]
    paths += load_manifest(storage, head).paths()
    visible = {path: digest_file(storage.local(path)).sha256 for path in paths}
    return visible | {path: storage.read(path) for path in storage.list("snapshots")}


COMMANDS = ("init", "ingest", "dedup", "embed", "index", "neighbours", "edit", "filter", "repair")


def test_undisturbed_runs_make_one_snapshot_each(laboratory: Laboratory) -> None:
    assert tuple(laboratory.commands) == COMMANDS
    storage = LocalStorage(laboratory.after(COMMANDS[-1]))
    assert snapshot_numbers(storage) == list(range(len(COMMANDS)))
    manifest = load_manifest(storage, read_head(storage))
    made = {"documents", "vectors", "parts", "codebooks", "tombstones", "queries", "rejects", "neighbours", "naming"}
    assert made <= set(manifest.size_by_kind())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_fault_leaves_the_old_or_the_new_version_and_can_be_continued(
    laboratory: Laboratory, command: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    before, after = laboratory.before(command), laboratory.after(command)
    old, new = state(LocalStorage(before)), state(LocalStorage(after))
    assert old != new
    counting = FaultyStorage(LocalStorage(tmp_path / "counted"))
    copy(before, tmp_path / "counted")
    laboratory.commands[command](context(counting))
    assert state(LocalStorage(tmp_path / "counted")) == new
    faults = [(at, *each, f) for at, each in enumerate(counting.operations) for f in faults_of(each[0])]
    for at, operation, path, fault in faults:
        where = f"{fault} at operation {at} of {command}, {operation} {path}"
        storage = LocalStorage(tmp_path / f"{at}-{fault}")
        copy(before, storage.root)
        is_done = run_with(laboratory.commands[command], FaultyStorage(storage, at, fault))
        seen = state(storage)
        assert seen in (old, new), where
        assert seen == new or not is_done, f"{where}: said to be done, but was not"
        laboratory.commands[command](context(storage))
        assert state(storage) == new, f"{where}: other bytes than an undisturbed run"
        shutil.rmtree(storage.root)
    record_property(SURVIVED, len(faults))
    print(f"{command}: {len(faults)} faults injected and survived")


def run_with(command: Command, storage: FaultyStorage) -> bool:
    """Whether the command ended as if nothing had happened; it may only fail as a user is told, or die."""
    try:
        command(context(storage))
    except (RetroDBError, Crash):
        return False
    return True
