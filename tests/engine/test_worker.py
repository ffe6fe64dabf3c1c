"""Workers that come, go, fail and die: every task ends once, and the command that waits for it says what is wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

import retrodb
from engine.made_tasks import WORK, Square, Work, run_work
from retrodb.engine.attempts import Attempt, attempts_of, claim, finished_tasks, read_claim
from retrodb.engine.posted import posted_tasks, write_posted
from retrodb.engine.progress import Progress
from retrodb.engine.run import Run, forget_run, open_run
from retrodb.engine.task import Task, TaskRecord
from retrodb.engine.task_attempt import ProcessShare
from retrodb.engine.task_process import ClaimedTask, TaskProcess
from retrodb.engine.task_queue import TaskQueue
from retrodb.engine.worker import Worker, WorkerOptions, WorkerResult
from retrodb.engine.worker_engine import WorkerEngine
from retrodb.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_REQUEUE, ConflictError, InputError, WorkerDied
from retrodb.maintain.runs import cancel
from retrodb.store.storage import LocalStorage

OPTIONS = WorkerOptions(idle_exit_s=1.5, libraries=("engine",))
LEASE_S = 1.0


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.engine.task_queue._OTHERS_FIRST_S", 0.3)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(LocalStorage(tmp_path / "db"), "made", {"plan": 1}, "2026-01-01")


def tasks_of(*works: Work) -> list[Task[Work, Square]]:
    return [WORK.task(work) for work in works]


def work(run: Run, options: WorkerOptions = OPTIONS) -> WorkerResult:
    return Worker(LocalStorage(run.storage.url), options).run()


@contextmanager
def workers(run: Run, count: int, options: WorkerOptions = OPTIONS) -> Iterator[list[Future[WorkerResult]]]:
    """Workers in threads, whose tasks run in processes."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(work, run, options) for _ in range(count)]


def wait_for(run: Run, tasks: list[Task[Work, Square]], lease_s: float = LEASE_S) -> list[TaskRecord[Square]]:
    return WorkerEngine(lease_s=lease_s).run(run, tasks, run_work, Progress())


def traces(run: Run, number: int) -> int:
    return len(run.storage.list(f"runs/traces/{number}"))


def test_tasks_are_shared_and_each_runs_once(run: Run) -> None:
    tasks = tasks_of(*(Work(number, 0.05) for number in range(12)))
    with workers(run, 2, replace(OPTIONS, processes=2)) as futures:
        records = wait_for(run, tasks)
    assert [record.result.number for record in records] == [number**2 for number in range(12)]
    assert [traces(run, number) for number in range(12)] == [1] * 12
    results = [future.result() for future in futures]
    assert sum(result.num_finished for result in results) == 12
    assert {result.exit_code for result in results} == {EXIT_OK}
    assert run.storage.list("queue") == []


def test_a_command_that_is_given_again_runs_nothing_again(run: Run) -> None:
    tasks = tasks_of(Work(1), Work(2))
    with workers(run, 1):
        first = wait_for(run, tasks)
    assert wait_for(run, tasks) == first  # without a worker
    assert traces(run, 1) == 1


def test_a_task_that_fails_twice_is_tried_a_third_time(run: Run) -> None:
    with workers(run, 1) as futures:
        [record] = wait_for(run, tasks_of(Work(3, fails=2)))
    assert record.result.number == 9
    assert futures[0].result().num_failed == 2


def test_a_task_that_fails_three_times_ends_the_command_with_its_error(run: Run) -> None:
    with workers(run, 1), pytest.raises(InputError, match=r"made: 3 fails\. Wait\."):
        wait_for(run, tasks_of(Work(3, fails=3)))
    assert run.storage.list("queue") == []
    log = run.storage.read(Attempt(run.id, tasks_of(Work(3, fails=3))[0].id, 3).log_path).decode()
    assert "attempt 2 at 3" in log
    assert "InputError" in log
    with workers(run, 1):  # the same command again tries again
        [record] = wait_for(run, tasks_of(Work(3, fails=3)))
    assert record.result.number == 9


def test_a_task_whose_process_dies_is_begun_again_at_once(run: Run) -> None:
    with workers(run, 1) as futures:
        [record] = wait_for(run, tasks_of(Work(3, dies=2)), lease_s=600)
    assert record.result.number == 9
    assert futures[0].result().num_failed == 2


def test_a_task_that_kills_every_process_is_named(run: Run) -> None:
    others = [Work(number) for number in range(4, 8)]
    [deadly, *rest] = tasks_of(Work(3, dies=100), *others)
    with workers(run, 2), pytest.raises(WorkerDied, match=f"{deadly.id} lost its process 4 times"):
        wait_for(run, [deadly, *rest], lease_s=600)
    assert finished_tasks(run.storage, run.id) >= {task.id for task in rest}  # it ran alone, after all others
    assert traces(run, 3) == 4


def test_tasks_of_a_worker_that_vanished_are_taken_by_others(run: Run) -> None:
    """It claimed a task and is not heard of again. Whoever comes later writes under other names."""
    [task] = tasks_of(Work(3))
    claim(run.storage, Attempt(run.id, task.id, 1), "vanished", task.id, "")
    with workers(run, 2, replace(OPTIONS, idle_exit_s=4)):
        [record] = wait_for(run, [task])
    [_, second] = attempts_of(run.storage, run.id)[task.id]
    assert record.files[0].path == f"rejects/{read_claim(run.storage, second).output}.parquet"
    assert task.id not in record.files[0].path
    assert record.task == task.id


def test_the_first_record_counts_when_two_believe_that_they_own_a_task(run: Run) -> None:
    [task] = tasks_of(Work(3, seconds=1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, [task])
        _until(lambda: run.storage.list("queue") != [])
        [posted] = run.storage.list("queue")
        processes = [TaskProcess(run.storage.url, ProcessShare(1, 1 << 30, ("engine",))) for _ in range(2)]
        outputs = ["c" * 32, "d" * 32]
        for number, (process, output) in enumerate(zip(processes, outputs, strict=True), start=1):
            process.begin(ClaimedTask(posted, 0, Attempt(run.id, task.id, number), output))
        for process in processes:
            _until(lambda process=process: (outcome := process.outcome()) is not None and outcome.state == "finished")
            process.close()
        [record] = waiting.result()
    assert traces(run, 3) == 2
    assert [run.storage.exists(f"rejects/{output}.parquet") for output in outputs] == [True, True]
    assert record.files[0].path in [f"rejects/{output}.parquet" for output in outputs]
    assert [record] == wait_for(run, [task])


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, EXIT_REQUEUE), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_a_worker_that_is_told_to_stop_gives_its_task_back(run: Run, told: int, code: int) -> None:
    process = _start(run, OPTIONS)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, [WORK.task(Work(3, seconds=2))], 600.0)
        _until(lambda: traces(run, 3) == 1)
        os.kill(process.pid or 0, told)
        process.join(10)
        assert process.exitcode == code
        with workers(run, 1):
            assert waiting.result()[0].result.number == 9


def test_a_worker_finishes_its_task_within_the_grace_period(run: Run) -> None:
    process = _start(run, replace(OPTIONS, grace_s=20))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, tasks_of(Work(3, seconds=1.5)), 600.0)
        _until(lambda: traces(run, 3) == 1)
        os.kill(process.pid or 0, signal.SIGTERM)
        assert waiting.result()[0].result.number == 9
        process.join(10)
    assert process.exitcode == EXIT_REQUEUE
    assert traces(run, 3) == 1


def test_a_killed_worker_takes_its_task_process_with_it(run: Run) -> None:
    process = _start(run, OPTIONS)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, tasks_of(Work(3, seconds=2)))
        _until(lambda: traces(run, 3) == 1)
        pid = int(run.storage.list("runs/traces/3")[0].rpartition("-")[2])
        process.kill()
        process.join()
        _until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
        with workers(run, 1, replace(OPTIONS, idle_exit_s=4)):
            assert waiting.result()[0].result.number == 9


def test_a_cancelled_run_ends_its_command_and_its_tasks(run: Run) -> None:
    with workers(run, 1) as futures, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, tasks_of(Work(3, seconds=60)))
        _until(lambda: traces(run, 3) == 1)
        cancel(run.storage, run.id)
        with pytest.raises(ConflictError, match="was cancelled"):
            waiting.result(10)
        assert futures[0].result(10).num_returned == 1


def test_a_worker_takes_only_what_it_is_for(run: Run) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, tasks_of(Work(3)))
        _until(lambda: run.storage.list("queue") != [])
        quick = replace(OPTIONS, idle_exit_s=0.5)
        for options in (
            replace(quick, stages=frozenset({"embed"})),
            replace(quick, run="f" * 8),
            replace(quick, gpu=True),
            replace(quick, memory_bytes=120 << 20),
        ):
            assert work(run, options).num_finished == 0
        assert work(run, replace(quick, stages=frozenset({"made"}), run=run.id[:6])).num_finished == 1
        assert waiting.result()[0].result.number == 9


def test_a_worker_says_which_tasks_need_more_memory(run: Run) -> None:
    notes: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, tasks_of(Work(3)))
        _until(lambda: run.storage.list("queue") != [])
        options = replace(OPTIONS, idle_exit_s=0.5, memory_bytes=120 << 20)
        Worker(LocalStorage(run.storage.url), options, notes.append).run()
        assert len(notes) == 1
        assert "1 of 1 tasks of 'work' need up to" in notes[0]
        work(run)
        waiting.result()


def test_a_task_process_that_dies_can_be_started_again(run: Run) -> None:
    process = TaskProcess(run.storage.url, ProcessShare(1, 1 << 30, ("engine",)))
    assert process.kill() == ""
    process.close()


def test_nothing_is_left_of_a_task_whose_run_was_forgotten(run: Run) -> None:
    """The command had its answer from an attempt that counted as lost."""
    posted = posted_tasks(run, tasks_of(Work(3, seconds=1)), run_work, extra_bytes=0, lease_s=600)
    write_posted(run.storage, posted)
    with workers(run, 1) as futures:
        _until(lambda: traces(run, 3) == 1)
        run.storage.delete(posted.path)
        forget_run(run)
        assert futures[0].result().num_finished == 1
    assert run.storage.list(f"runs/{run.id}") == []


def _start(run: Run, options: WorkerOptions):  # type: ignore[no-untyped-def]
    """A worker in a process of its own, which gets signals."""
    process = get_context("spawn").Process(
        target=_work_and_exit, args=(run.storage.url, replace(options, idle_exit_s=None))
    )
    process.start()
    return process


def _work_and_exit(url: str, options: WorkerOptions) -> None:
    assert threading.current_thread() is threading.main_thread()
    raise SystemExit(Worker(LocalStorage(url), options).run().exit_code)


def _until(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def test_tasks_of_large_outputs_are_verified_by_workers_before_they_count(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_of(*map(Work, range(6)))
    with workers(run, 1):
        first = wait_for(run, tasks)
    monkeypatch.setattr("retrodb.engine.run._VERIFIED_HERE_BYTES", -1)
    run.storage.write(first[2].files[0].path, b"damaged")
    with workers(run, 2):
        again = wait_for(run, tasks)
    assert [record.result for record in again] == [record.result for record in first]
    assert [traces(run, number) for number in range(6)] == [1, 1, 2, 1, 1, 1]


def test_two_processes_that_wait_for_the_same_tasks_both_get_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.engine.worker_engine._LOOK_EVERY_S", 0.1)
    tasks = tasks_of(*(Work(number, 0.2) for number in range(8)))
    with ThreadPoolExecutor(2) as pool, workers(run, 2, replace(OPTIONS, idle_exit_s=5)):
        both = [pool.submit(wait_for, run, tasks) for _ in range(2)]
        assert both[0].result(60) == both[1].result(60)
    assert run.storage.list("queue") == []


def test_a_command_whose_run_was_deleted_does_not_wait_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.engine.worker_engine._LOOK_EVERY_S", 0.1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, tasks_of(Work(3)))
        _until(lambda: run.storage.list("queue") != [])
        forget_run(run)
        with pytest.raises(ConflictError, match="ended this run"):
            waiting.result(20)


def test_a_task_that_fails_on_one_machine_is_left_to_others(run: Run) -> None:
    """The first worker may run none of the functions."""
    broken = replace(OPTIONS, libraries=(), idle_exit_s=8)
    with workers(run, 1, broken), workers(run, 1, replace(OPTIONS, idle_exit_s=8)):
        records = wait_for(run, tasks_of(*(Work(number, 0.05) for number in range(6))), lease_s=20)
    assert len(records) == 6


def test_a_worker_whose_tasks_all_fail_ends(run: Run) -> None:
    broken = replace(OPTIONS, libraries=(), idle_exit_s=None)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, run, tasks_of(*map(Work, range(20))), 600.0)
        result = work(run, broken)
        assert (result.exit_code, result.num_failed) == (1, 10)
        work(run, replace(OPTIONS, idle_exit_s=2))
        assert len(waiting.result(30)) == 20


def test_tasks_of_another_version_are_left(run: Run) -> None:
    notes: list[str] = []
    posted = posted_tasks(run, tasks_of(Work(3)), run_work, extra_bytes=0, lease_s=600)
    write_posted(run.storage, replace(posted, library="0.0.1"))
    Worker(LocalStorage(run.storage.url), replace(OPTIONS, idle_exit_s=0.5), notes.append).run()
    assert notes == [f"run {run.id[:12]} is of retrodb 0.0.1, and this worker is {retrodb.__version__}"]


def test_damaged_tasks_are_named(run: Run) -> None:
    notes: list[str] = []
    run.storage.write(f"queue/{run.id}/{'a' * 32}.json", b"{")
    Worker(LocalStorage(run.storage.url), replace(OPTIONS, idle_exit_s=0.5), notes.append).run()
    assert len(notes) == 1
    assert "queue/" in notes[0]


def test_a_command_may_end_between_a_list_of_tasks_and_a_claim(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    posted = posted_tasks(run, tasks_of(*map(Work, range(20))), run_work, extra_bytes=0, lease_s=600)
    write_posted(run.storage, posted)

    def claim_too_late(storage: LocalStorage, *arguments: object) -> bool:
        storage.delete(posted.path)
        return claim(storage, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("retrodb.engine.task_queue.claim", claim_too_late)
    assert TaskQueue(run.storage, "worker", 1 << 40).next() is None
    assert run.storage.list(f"runs/{run.id}/attempts") == []


def test_a_task_runs_in_the_folder_of_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of its payload start from there; that of the worker's database does not."""
    folder = tmp_path / "of the command"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run = open_run(LocalStorage("../db"), "made", {"plan": 1}, "2026-01-01")
    [task] = tasks_of(Work(3))
    posted = posted_tasks(run, [task], run_work, extra_bytes=0, lease_s=600)
    write_posted(run.storage, posted)
    monkeypatch.chdir(tmp_path)
    assert Worker(LocalStorage("db"), replace(OPTIONS, idle_exit_s=1)).run().num_finished == 1
    log = LocalStorage("db").read(Attempt(run.id, task.id, 1).log_path).decode()
    assert f"attempt 0 at 3 in {folder}" in log
