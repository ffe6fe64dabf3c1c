"""The exact neighbours of the sample are computed once for a command, and nothing of them stays when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_documents import made_text

from retrodb.database import Database
from retrodb.format.entries import TableEntry
from retrodb.stages.neighbours import command, recall_sample, truth_tasks

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> Database:
    database = make_database({str(i): made_text(i, 1000) for i in range(30)})
    database.embed()
    database.index(factory="IVF8,SQ8")
    monkeypatch.setattr(truth_tasks, "_TASK_CHUNKS", 1)  # a task for each shard
    return database


def counted(monkeypatch: pytest.MonkeyPatch, name: str, module: Any = truth_tasks) -> list[str]:
    """The ids of the tasks that a function ran."""
    run, ids = getattr(module, name), list[str]()

    def counting(storage: Any, task: Any, clock: str, **options: Any) -> Any:
        ids.append(task.id)
        return run(storage, task, clock, **options)

    monkeypatch.setattr(module, name, counting)
    return ids


def run_folders(database: Database) -> int:
    return sum(path.endswith("/plan.json") for path in database.view().storage.list("runs"))


def test_the_point_and_the_recall_are_measured_with_the_same_scan(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, points = counted(monkeypatch, "run_truth_scan"), counted(monkeypatch, "run_point_task", recall_sample)
    before = run_folders(database)
    result = database.neighbours(recall=0.5)
    assert result.recall_reached is not None
    assert 0.4 < result.recall_reached < 1
    assert (len(scans), len(points)) == (1, 1)
    assert run_folders(database) == before + 1, "only that of the table"
    database.bench_recall(target_recall=0.5)
    assert len(scans) == 2
    database.neighbours(recall=0.5, table="stored")
    assert (len(scans), len(points)) == (3, 1), "the stored point is used, and the recall measured"
    database.neighbours(exact=True, table="exact")
    assert len(scans) == 3


def test_a_dry_run_leaves_nothing(database: Database) -> None:
    before = database.view().storage.list("runs")
    planned = database.neighbours(recall=0.5, dry_run=True)
    assert database.view().storage.list("runs") == before
    made = database.neighbours(recall=0.5)
    assert (planned.nprobe, planned.recall_expected) == (made.nprobe, made.recall_expected)
    database.index(factory="IVF4,SQ8", retrain=True)
    before = database.view().storage.list("runs")
    [repaired] = database.repair_neighbours(dry_run=True)
    assert repaired.num_new_rows == repaired.num_rows, "all of it is computed again"
    assert database.view().storage.list("runs") == before


def test_an_interrupted_command_continues_with_the_scan_that_it_has(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, scans = run_folders(database), counted(monkeypatch, "run_truth_scan")

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    for place in ("run_neighbours_task", "store_compared"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                database.neighbours(recall=0.5)
        assert len(scans) == 1
    result = database.neighbours(recall=0.5)
    assert run_folders(database) == before + 1
    entry = database.view().snapshot.existing(TableEntry, "self")
    whole = database.neighbours(recall=0.5, table="whole")
    assert (result.nprobe, result.recall_reached) == (whole.nprobe, whole.recall_reached)
    assert entry.recall_reached == result.recall_reached
