"""What a command does for one more small shard does not depend on how many shards there are."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from faulty_storage import FaultyStorage
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.store.storage import LocalStorage

SIZES = (3, 6, 9)
TOLERANCE = 1.04  # some lookups are binary searches, and some lists are sorted


def count_calls(command: Callable[[], object]) -> int:
    """Number of Python functions that a command calls, without those that the garbage collector happens to end meanwhile."""
    count = 0

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    gc.collect()
    gc.disable()
    sys.setprofile(on_event)
    try:
        command()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def measure(folder: Path, tokenizer: Path, num_shards: int) -> dict[str, int]:
    """The storage operations and function calls of commands over new shards, next to as many that were there before."""
    retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder="hashing:32")
    storage = FaultyStorage(LocalStorage(folder / "db"))
    database = Database(storage, workers=1)
    counts = {}
    for round_ in range(2):
        documents = {f"d{seed}": made_text(seed, 10) for seed in range(round_ * num_shards, (round_ + 1) * num_shards)}
        database.ingest([write_documents(folder / f"{round_}.jsonl", documents)], source="made")
        assert len(database.view().shards) == (round_ + 1) * num_shards
        for name, command in (("embed", database.embed), ("index", database.index)):
            before = len(storage.operations)
            counts[f"{name} {round_}: calls"] = count_calls(command)
            counts[f"{name} {round_}: operations"] = len(storage.operations) - before
    return counts


def test_the_cost_of_a_small_shard_does_not_grow_with_their_number(
    tmp_path: Path, made_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("shard", "tokenize"):  # every document becomes a shard
        monkeypatch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", 1)
    monkeypatch.setattr("retrodb.stages.index.merge.choose_merges", lambda sizes: [])  # merges have tests of their own
    counts = []
    for num_shards in (1, *SIZES):  # the first also loads modules
        folder = tmp_path / str(num_shards)
        folder.mkdir()
        counts.append(measure(folder, made_tokenizer, num_shards))
    few, more, most = counts[1:]
    grown = {
        name: (few[name], more[name], most[name])
        for name in few
        if most[name] - more[name] > TOLERANCE * (more[name] - few[name])
    }
    assert not grown, f"for {SIZES} shards: {grown}"
