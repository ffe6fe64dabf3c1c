"""Training by tasks: the codebook of a training in memory, whatever the files, tasks, processes and interruptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.ann.codebook import Codebook
from retrodb.ann.training import train
from retrodb.database import Database
from retrodb.errors import NotEnoughMemory
from retrodb.facade.command_memory import LEAST_MIB
from retrodb.format.arrays import VectorArray
from retrodb.format.entries import DriftEntry, IndexEntry
from retrodb.memory import MIB, with_caches
from retrodb.stages.index import train_codebook, training_tasks
from retrodb.stages.index.live_parts import open_codebook
from retrodb.stages.index.train_codebook import TrainingSize

Make = Callable[..., Database]
FACTORY = "IVF24(IVF5,Flat),SQ8"
GROUPED = [FACTORY, "IVF24(IVF5,Flat),RaBitQfs"]


@pytest.fixture
def embedded(make_database: Make, tmp_path: Path) -> Database:
    database = make_database({})
    for name in ("a", "b", "c"):
        documents = {f"{name}{number}": made_text(f"{name}{number}", 4000) for number in range(8)}
        database.ingest([write_documents(tmp_path / f"{name}.jsonl", documents)], source=name)
    database.embed()
    return database


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces of the sample, and a task for each group, in several processes where there are workers."""
    monkeypatch.setattr("retrodb.stages.seeded_sample.TASK_ROWS", 300)
    monkeypatch.setattr("retrodb.stages.index.train_codebook.PIECE_ROWS", 170)
    monkeypatch.setattr("retrodb.stages.index.train_codebook._LEAST_ROWS", 1)
    monkeypatch.setattr("retrodb.stages.index.command.ROWS_OF_ONE_PROCESS", 0)


def codebook_of(database: Database) -> Codebook:
    return open_codebook(database.view(), "default")


def sample_of(database: Database) -> VectorArray:
    """The vectors of all live rows: the sample of so small a database."""
    view = database.view()
    rows = np.flatnonzero(view.embeddable_mask(0, view.chunks.end))
    return view.vectors("default", rows)


@pytest.mark.parametrize("factory", ["IVF24,SQ8", *GROUPED])
@pytest.mark.usefixtures("small_tasks")
def test_tasks_train_the_codebook_of_a_training_in_memory(factory: str, embedded: Database) -> None:
    embedded.index(factory=factory, train_sample=1 << 20)
    expected = train(sample_of(embedded), factory, 0, "inner_product")
    assert codebook_of(embedded).digest == expected.digest
    assert np.array_equal(codebook_of(embedded).centroids_LD, expected.centroids_LD)


@pytest.mark.usefixtures("small_tasks")
def test_the_codebook_does_not_depend_on_tasks_or_processes(
    embedded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.index(factory=FACTORY)
    first = codebook_of(embedded).digest
    monkeypatch.setattr("retrodb.stages.index.train_codebook._TASKS", 5)
    retrodb.open(embedded.path, workers=2).index(factory=FACTORY, retrain=True)
    assert codebook_of(embedded).digest == first
    monkeypatch.undo()
    embedded.index(factory=FACTORY, retrain=True)
    assert codebook_of(embedded).digest == first


@pytest.mark.usefixtures("small_tasks")
def test_nothing_is_left_of_a_training(embedded: Database) -> None:
    embedded.index(factory=FACTORY)
    assert not [path for path in embedded.view().storage.list("runs") if "/training/" in path]


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("step", ["run_groups_task", "run_split_task", "run_cluster_task", "run_codebook_task"])
def test_an_interrupted_training_continues_with_the_same_bytes(
    step: str, embedded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.index(factory=FACTORY)
    expected = codebook_of(embedded).digest
    original, calls = getattr(training_tasks, step), []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2 or step in ("run_groups_task", "run_codebook_task"):
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train_codebook, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            embedded.index(factory=FACTORY, retrain=True)
    ran = []
    for name in ("run_groups_task", "run_split_task", "run_cluster_task", "run_codebook_task"):
        monkeypatch.setattr(train_codebook, name, counted(getattr(training_tasks, name), name, ran))
    embedded.index(factory=FACTORY, retrain=True)
    assert codebook_of(embedded).digest == expected
    assert step in ran
    assert "run_groups_task" not in ran or step == "run_groups_task"


def counted(function: Callable[..., object], name: str, ran: list[str]) -> Callable[..., object]:
    def counting(*args: object, **options: object) -> object:
        ran.append(name)
        return function(*args, **options)

    return counting


def test_the_cost_of_the_assignment_is_stored_and_shown(embedded: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = embedded.index(factory=FACTORY)
    assert exact.assignment_recall is None
    monkeypatch.setattr("retrodb.ann.codebook.FLAT_LISTS", 8)
    monkeypatch.setattr("retrodb.ann.training.PROBED_GROUPS", 1)
    monkeypatch.setattr("retrodb.ann.codebook.MOST_PROBED", 1)
    monkeypatch.setattr("retrodb.ann.assignment_recall.PROBES", (2,))
    monkeypatch.setattr("retrodb.ann.assignment_recall.LEAST_RECALL", 0)
    result = embedded.index(factory=FACTORY, retrain=True)
    assert result.assignment_recall is not None
    assert 0.5 < result.assignment_recall < 1
    assert embedded.view().snapshot.existing(IndexEntry, "default").assignment_recall == result.assignment_recall
    assert embedded.index().assignment_recall == result.assignment_recall
    assert embedded.neighbours(k=2, dry_run=True).assignment_recall == result.assignment_recall


@pytest.mark.usefixtures("small_tasks")
def test_the_process_of_the_command_opens_no_codebook(
    embedded: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes) -> None:
        raise AssertionError("a codebook was opened by the process that plans")

    for module in ("codebook_file", "live_parts", "training_tasks"):
        monkeypatch.setattr(f"retrodb.stages.index.{module}.load_codebook", refuse)
    database = retrodb.open(embedded.path, workers=2)
    assert database.index(factory=FACTORY).num_lists == 24
    for name in ("d", "e"):
        database.ingest([write_documents(tmp_path / f"{name}.jsonl", {name: made_text(name, 400)})], source=name)
    database.embed()
    assert database.index().num_vectors > 0
    entry = database.view().snapshot.existing(DriftEntry, "default")
    assert entry.added > 0
    assert entry.canary_recall is not None


def test_the_memory_of_a_training_is_checked_before_it_begins(embedded: Database) -> None:
    with pytest.raises(NotEnoughMemory, match=r"training IVF24\(IVF5,Flat\),SQ8 on [\d,]+ vectors needs at least"):
        retrodb.open(embedded.path, memory_bytes=with_caches(LEAST_MIB["index"] * MIB)).index(factory=FACTORY)
    assert not [path for path in embedded.view().storage.list("runs") if "/sample/" in path]


def test_no_task_of_a_training_holds_the_whole_sample() -> None:
    sizes = [TrainingSize(f"IVF{lists}(IVF{groups},Flat),SQ8", 64 * lists, 384) for lists, groups in SHAPES]
    for size in sizes:
        sample_bytes = size.rows * size.dimension * 2
        lists_bytes = 4 * size.dimension * size.rows // 64
        assert size.step_bytes < 8 * lists_bytes + max(sample_bytes / 20, 2 << 30)


SHAPES = [(16_384, 128), (131_072, 362), (1 << 20, 1024), (1 << 22, 2048)]
