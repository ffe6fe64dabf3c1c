"""How many processes run side by side follows from the memory limit, and changes nothing else."""

from __future__ import annotations

import ast
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from retrodb.engine import task_memory
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import LineProgress, Progress
from retrodb.engine.run import Run, open_run
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.engine.task_memory import MAIN_MIB, TASK_MEMORY, TaskMemory, process_bytes
from retrodb.errors import NotEnoughMemory
from retrodb.memory import MIB, PROCESS_MEMORY, with_caches
from retrodb.store.storage import LocalStorage, Storage

SOURCES = Path(__file__).resolve().parents[2] / "retrodb"
HUNDRED = with_caches(100 * MIB)  # of a process of KIND
MAIN = 300 * MIB  # of the process of a command, in these tests


@dataclass(frozen=True)
class Number:
    """The payload of a task."""

    number: int


@dataclass(frozen=True)
class Ran:
    """Where a task ran."""

    process: int
    limit_bytes: int


KIND = TaskKind[Number, Ran]("heavy", 1, Ran)


def note_process(storage: Storage, task: Task[Number, Ran], clock: str) -> TaskRecord[Ran]:
    return TaskRecord(task.id, result=Ran(os.getpid(), PROCESS_MEMORY.limit_bytes))


@pytest.fixture(autouse=True)
def _made_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(task_memory, "TASK_MEMORY", {"heavy": TaskMemory(100, 1.0)})
    monkeypatch.setattr("retrodb.engine.local._memory_of_this_process", lambda: MAIN)
    limit = PROCESS_MEMORY.limit_bytes
    yield
    PROCESS_MEMORY.begin(limit)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(LocalStorage(tmp_path / "db"), "heavy", {})


def tasks(count: int, weight: int = 0) -> list[Task[Number, Ran]]:
    return [KIND.task(Number(number), weight=weight) for number in range(count)]


@pytest.mark.parametrize(
    ("room", "num_tasks", "processes"), [(0, 9, 1), (1, 9, 1), (2, 9, 2), (3, 9, 3), (9, 9, 4), (9, 2, 2)]
)
def test_as_many_processes_run_as_there_is_memory_for(room: int, num_tasks: int, processes: int) -> None:
    engine = LocalEngine(4, MAIN + room * HUNDRED)
    made = tasks(num_tasks)
    assert engine.num_processes(made, process_bytes(made)) == processes


def test_a_process_needs_more_for_larger_tasks_and_for_what_all_of_them_hold() -> None:
    small, large = (process_bytes(tasks(3, weight)) for weight in (0, 50 * MIB))
    assert (small, large) == (HUNDRED, with_caches(150 * MIB))
    assert process_bytes(tasks(3), extra_bytes=50 * MIB) == large
    assert process_bytes([]) == 0


def test_a_worker_gets_its_part_of_the_limit(run: Run) -> None:
    engine = LocalEngine(4, MAIN + 2 * HUNDRED + 7)
    records = engine.run(run, tasks(6), note_process, Progress())
    assert {record.result.limit_bytes for record in records} == {HUNDRED + 3}
    processes = {record.result.process for record in records}
    assert len(processes) <= 2
    assert os.getpid() not in processes


def test_with_memory_for_one_process_the_tasks_run_in_this_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    records = LocalEngine(4, HUNDRED).run(run, tasks(6), note_process, LineProgress())
    assert {record.result.process for record in records} == {os.getpid()}
    assert "1 of 4 processes fit into 115MiB of memory" in capsys.readouterr().err


def test_tasks_that_fit_into_no_process_are_refused_before_one_starts(run: Run) -> None:
    for isolated, least in ((False, 115), (True, 115 + MAIN_MIB)):
        engine = LocalEngine(2, least * MIB - 2 * MIB)
        with pytest.raises(NotEnoughMemory, match=rf"a task of 'heavy' needs at least {least}MiB of memory"):
            engine.run(run, tasks(3), note_process, Progress(), isolated=isolated)
    assert not [path for path in run.storage.list("runs") if not path.endswith("plan.json")]


def test_shared_processes_start_again_where_later_tasks_need_more(run: Run) -> None:
    running = []  # whether or not a task came to each of them
    with LocalEngine(3, MAIN + 3 * HUNDRED).sharing_processes() as engine:
        for number, made in enumerate((tasks(9), tasks(9)[:1], tasks(9, 30 * MIB))):
            records = engine.run(open_run(run.storage, "heavy", {"n": number}), made, note_process, Progress())
            running.append({process.pid for process in multiprocessing.active_children()})
            assert {record.result.process for record in records} <= running[-1]
    first, again, larger = running
    assert again == first
    assert not larger & first
    assert len(larger) <= 2


def test_few_tasks_leave_no_later_ones_with_few_processes(run: Run) -> None:
    limits = []
    with LocalEngine(4, MAIN + 8 * HUNDRED).sharing_processes() as engine:
        for number, count in enumerate((2, 9, 2)):
            records = engine.run(open_run(run.storage, "heavy", {"n": number}), tasks(count), note_process, Progress())
            limits.append({record.result.limit_bytes for record in records})
    assert limits == [{4 * HUNDRED}, {2 * HUNDRED}, {2 * HUNDRED}]


def test_every_kind_of_tasks_is_in_the_table() -> None:
    stages = set[str]()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Subscript)
                and ast.unparse(node.func.value) == "TaskKind"
            ):
                assert isinstance(node.args[0], ast.Constant), path
                stages.add(str(node.args[0].value))
    assert stages == TASK_MEMORY.keys()


def test_a_limit_changes_no_id_of_a_task() -> None:
    ids = [task.id for task in tasks(3)]
    PROCESS_MEMORY.begin(HUNDRED)
    assert [task.id for task in tasks(3)] == ids


def test_a_range_of_ids_with_gaps_needs_no_more_than_a_full_shard() -> None:
    bounded = TaskMemory(100, 8, 1 << 20)
    assert bounded.of_task(1 << 40) == bounded.of_task(1 << 20) > bounded.of_task(1 << 19)
