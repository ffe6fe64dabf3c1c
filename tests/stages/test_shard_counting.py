"""A commit counts the shards that it changes in tasks, and its counts are right whatever was committed in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.engine.run import Run
from retrodb.engine.task import Task, TaskRecord
from retrodb.stages import shard_counting
from retrodb.stages.context import Context
from retrodb.stages.deletion.choice import Choice
from retrodb.stages.deletion.filter import execute_filter, plan_filter
from retrodb.store.storage import LocalStorage, Storage

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> Database:
    """One document in each of six shards, which are counted in tasks of their own."""
    for name in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{name}.MAX_SHARD_CHUNKS", 3)
    monkeypatch.setattr(shard_counting, "_TASK_CHUNKS", 1)
    made = make_database({f"d{n}": made_text(n, 150) for n in range(6)})
    assert len(made.view().shards) == 6
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First chunks of the shards that tasks count."""
    shards: list[int] = []
    run_task = shard_counting.run_shard_counts

    def run(
        storage: Storage, task: Task[shard_counting.ShardCountsPayload, shard_counting.CountsOfShards], clock: str
    ) -> TaskRecord[shard_counting.CountsOfShards]:
        shards.extend(record.first_chunk for record in task.payload.documents)
        return run_task(storage, task, clock)

    monkeypatch.setattr(shard_counting, "run_shard_counts", run)
    return shards


def test_only_the_shards_that_a_commit_changes_are_counted(database: Database, counted: list[int]) -> None:
    firsts = database.view().shards.first_chunk.tolist()
    database.filter(doc_ids=["d1", "d4"], reason="x")
    assert sorted(counted) == [firsts[1], firsts[4]]
    assert not database.check(read_data=True).damaged


def test_a_commit_in_between_has_only_the_shards_counted_again_that_both_change(
    database: Database, counted: list[int], tmp_path: Path
) -> None:
    context, firsts = Context(LocalStorage(tmp_path / "db")), database.view().shards.first_chunk.tolist()
    plan = plan_filter(context, Choice(where="doc_id in ('d0', 'd1', 'd2')"), "x")
    database.filter(doc_ids=["d1", "d5"], reason="y")
    counted.clear()
    execute_filter(context, plan)
    assert sorted(counted) == firsts[:3]
    counts = database.view().manifest.counts
    assert set(counts[firsts[1]]) == {"", "x", "y"}
    assert counts[firsts[1]][""].num_chunks == 0
    assert not database.check(read_data=True).damaged


def test_a_commit_that_lost_a_race_counts_again_what_the_other_commit_changed(
    database: Database, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, firsts = Context(LocalStorage(tmp_path / "db")), database.view().shards.first_chunk.tolist()
    plan = plan_filter(context, Choice(where="doc_id in ('d0', 'd1', 'd2')"), "x")
    count, has_raced = shard_counting.count_changed_shards, False

    def count_and_lose(context: Context, run: Run, view: object, spans: object) -> object:
        nonlocal has_raced
        counts = count(context, run, view, spans)  # type: ignore[arg-type]
        if not has_raced:
            has_raced = True
            assert sorted(counted) == firsts[:3]
            database.filter(doc_ids=["d1", "d5"], reason="y")
            counted.clear()
        return counts

    monkeypatch.setattr("retrodb.stages.transaction.count_changed_shards", count_and_lose)
    execute_filter(context, plan)
    assert counted == [firsts[1]]  # the counts of the others are those of the first attempt
    assert set(database.view().manifest.counts[firsts[1]]) == {"", "x", "y"}
    assert not database.check(read_data=True).damaged


def test_counts_of_new_shards_are_used_again_when_they_get_other_ids(
    database: Database, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = write_documents(tmp_path / "new.jsonl", {"n0": made_text(20, 150), "n1": made_text(21, 150)})
    other = write_documents(tmp_path / "other.jsonl", {"o0": made_text(22, 150)})
    count, has_raced = shard_counting.count_changed_shards, False

    def count_and_lose(context: Context, run: Run, view: object, spans: object) -> object:
        nonlocal has_raced
        counts = count(context, run, view, spans)  # type: ignore[arg-type]
        if not has_raced:
            has_raced = True
            database.ingest([other], source="other")
            counted.clear()
        return counts

    monkeypatch.setattr("retrodb.stages.transaction.count_changed_shards", count_and_lose)
    database.ingest([new], source="made")
    assert not counted
    assert len(database.view().shards) == 9
    assert not database.check(read_data=True).damaged
