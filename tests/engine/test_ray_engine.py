"""Tasks on a Ray cluster: each ends once, whatever dies, and the command says what is wrong in one line."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

import ray

from engine.made_tasks import LOOK, WORK, Devices, Square, Work, run_look, run_work
from retrodb.engine.attempts import Attempt, attempts_of, claim, finished_tasks, read_claim, read_sign
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import Progress
from retrodb.engine.ray_cluster import RayCluster, _Connection
from retrodb.engine.ray_engine import RayEngine
from retrodb.engine.run import Run, open_run, record_path
from retrodb.engine.task import Task, TaskRecord, dump_record
from retrodb.errors import (
    ConflictError,
    InputError,
    MissingDependency,
    NotEnoughMemory,
    RetroDBError,
    UsageError,
    WorkerDied,
)
from retrodb.maintain.runs import cancel
from retrodb.store.storage import LocalStorage
from retrodb_cli.main import main

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """A cluster of this machine, as long as these tests."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))  # of the processes on the nodes
        patch.setattr("retrodb.engine.ray_cluster.available_cpus", lambda: 2)
        patch.setattr("retrodb.engine.ray_engine._LOOK_EVERY_S", 0.2)
        patch.setattr("ray.init", partial(ray.init, num_gpus=1))
        engine = RayEngine(3 << 30, "local", libraries=("engine",))
        with engine.running("made"):
            yield engine


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(LocalStorage(tmp_path / "db"), "made", {"plan": 1}, "2026-01-01")


def tasks_of(*works: Work) -> list[Task[Work, Square]]:
    return [WORK.task(work) for work in works]


def finish(engine: RayEngine, run: Run, tasks: Sequence[Task[Work, Square]]) -> list[TaskRecord[Square]]:
    return engine.run(run, tasks, run_work, Progress())


def processes(run: Run, *numbers: int) -> set[int]:
    """The processes that made attempts at tasks."""
    paths = [path for number in numbers for path in run.storage.list(f"runs/traces/{number}")]
    return {int(path.rpartition("-")[2]) for path in paths}


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_records_and_files_are_those_of_one_machine(engine: RayEngine, run: Run, tmp_path: Path) -> None:
    tasks = tasks_of(*map(Work, range(30)))
    here = open_run(LocalStorage(tmp_path / "here"), "made", {"plan": 1}, "2026-01-01")
    expected = LocalEngine().run(here, tasks, run_work, Progress())
    assert finish(engine, run, tasks) == expected
    for record in expected:
        assert run.storage.read(record.files[0].path) == here.storage.read(record.files[0].path)
    assert all(len(run.storage.list(f"runs/traces/{number}")) == 1 for number in range(30))
    assert len(processes(run, *range(30))) <= 2


def test_processes_stay_for_the_next_tasks_of_a_command(engine: RayEngine, run: Run) -> None:
    finish(engine, run, tasks_of(*map(Work, range(8))))
    finish(engine, run, tasks_of(*map(Work, range(8, 16))))
    assert len(processes(run, *range(16))) <= 2


def test_a_single_task_has_all_threads_of_the_node(engine: RayEngine, run: Run) -> None:
    [record] = finish(engine, run, tasks_of(Work(3)))
    assert record.result.threads == 2


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", Devices("", 1)), ("cuda", Devices("0", 1)), ("auto", Devices("0", 1))]
)
def test_tasks_that_compute_on_a_gpu_have_one(engine: RayEngine, run: Run, device: str, expected: Devices) -> None:
    [record] = engine.run(run, [LOOK.task(Work(1))], partial(run_look, device=device), Progress())
    assert record.result == expected


def test_tasks_take_less_of_a_node_that_other_work_uses(
    engine: RayEngine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.engine.ray_engine._SHRINK_AFTER_S", 0.5)
    finish(engine, run, tasks_of(Work(1), Work(2)))  # ends processes that have both CPUs
    engine._pool.close()  # type: ignore[union-attr]
    other = ray.remote(num_cpus=1)(lambda: time.sleep(60)).remote()
    [record] = finish(engine, run, tasks_of(Work(3)))
    assert record.result.threads == 1
    ray.cancel(other, force=True)


def test_the_same_command_again_runs_nothing_again(engine: RayEngine, run: Run) -> None:
    tasks = tasks_of(Work(1), Work(2))
    first = finish(engine, run, tasks)
    assert finish(engine, run, tasks) == first
    assert len(run.storage.list("runs/traces/1")) == 1


def test_finished_tasks_are_verified_on_the_cluster(
    engine: RayEngine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs that this process would read for too long. One of them is damaged, and written again."""
    monkeypatch.setattr("retrodb.engine.run._VERIFIED_HERE_BYTES", 0)
    tasks = tasks_of(Work(1), Work(2))
    first = finish(engine, run, tasks)
    path, content = first[0].files[0].path, run.storage.read(first[0].files[0].path)
    run.storage.write(path, b"damaged")
    second = finish(engine, run, tasks)
    assert run.storage.read(second[0].files[0].path) == content
    assert second[1] == first[1]
    assert [len(run.storage.list(f"runs/traces/{number}")) for number in (1, 2)] == [2, 1]


def test_the_error_of_a_task_is_that_of_the_command(engine: RayEngine, run: Run) -> None:
    [bad] = tasks_of(Work(3, fails=1))
    with pytest.raises(InputError, match=r"^made: 3 fails\. Wait\.$") as caught:
        finish(engine, run, [bad, *tasks_of(Work(4, seconds=30))])
    assert caught.value.exit_code == InputError.exit_code
    attempt = Attempt(run.id, bad.id, 1)
    log = run.storage.read(attempt.log_path).decode()
    assert "attempt 0 at 3" in log
    assert "raise InputError" in log
    assert read_sign(run.storage, attempt).state == "failed"
    until(lambda: all(map(has_ended, processes(run, 4))))
    [record] = finish(engine, run, [bad])  # the same command again tries again
    assert record.result.number == 9


def test_a_defect_is_named_without_its_frames(engine: RayEngine, run: Run) -> None:
    [task] = tasks_of(Work(3, seconds=-1))
    with pytest.raises(RetroDBError, match=r"internal error: ValueError: sleep length must be non-negative") as caught:
        finish(engine, run, [task])
    assert "\n" not in str(caught.value)
    assert b"time.sleep" in run.storage.read(Attempt(run.id, task.id, 1).log_path)


def test_a_task_whose_process_dies_is_given_to_another(engine: RayEngine, run: Run) -> None:
    """The one that died may be alive on a node that is cut off, so the other one writes elsewhere."""
    [task, *others] = tasks_of(Work(3, dies=2), Work(4), Work(5))
    record, *_ = finish(engine, run, [task, *others])
    assert record.result.number == 9
    assert record.task == task.id
    *_, last = attempts_of(run.storage, run.id)[task.id]
    assert last.number == 3
    assert record.files[0].path == f"rejects/{read_claim(run.storage, last).output}.parquet"
    assert task.id not in record.files[0].path
    assert len(processes(run, 3)) == 3


def test_a_task_that_kills_every_process_is_named(engine: RayEngine, run: Run) -> None:
    [deadly, *rest] = tasks_of(Work(3, dies=100), *(Work(number) for number in range(4, 8)))
    with pytest.raises(WorkerDied, match=f"task {deadly.id} lost its process 4 times"):
        finish(engine, run, [deadly, *rest])
    assert finished_tasks(run.storage, run.id) >= {task.id for task in rest}  # it ran alone, after all others
    assert len(processes(run, 3)) == 4


def test_the_first_record_of_two_attempts_counts(engine: RayEngine, run: Run) -> None:
    """Another attempt ends while this one runs. It has claimed its number, so this one has the next."""
    [task] = tasks_of(Work(3, seconds=1))
    claim(run.storage, Attempt(run.id, task.id, 1), "cut off", task.id, "")
    first = TaskRecord(task.id, (), Square(9, threads=77))

    def end_first() -> None:
        until(lambda: bool(processes(run, 3)))
        assert run.storage.put_if_absent(record_path(run.id, task.id), dump_record(first))

    other = threading.Thread(target=end_first)
    other.start()
    assert finish(engine, run, [task]) == [first]
    other.join()
    assert [attempt.number for attempt in attempts_of(run.storage, run.id)[task.id]] == [1, 2]
    assert not run.storage.exists(f"rejects/{task.id}.parquet")


def test_a_cancelled_run_ends_the_command_and_its_processes(engine: RayEngine, run: Run) -> None:
    def cancel_when_running() -> None:
        until(lambda: bool(processes(run, 3)))
        cancel(run.storage, run.id)

    other = threading.Thread(target=cancel_when_running)
    other.start()
    with pytest.raises(ConflictError, match="this 'made' was cancelled"):
        finish(engine, run, tasks_of(Work(3, seconds=60)))
    other.join()
    until(lambda: all(map(has_ended, processes(run, 3))))


def test_an_interrupt_ends_the_processes(engine: RayEngine, run: Run) -> None:
    tasks = tasks_of(Work(3, seconds=1), Work(4))

    def interrupt_when_running() -> None:
        until(lambda: bool(processes(run, 3) and finished_tasks(run.storage, run.id)))
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt_when_running)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        finish(engine, run, tasks)
    other.join()
    until(lambda: all(map(has_ended, processes(run, 3, 4))))
    assert [record.result.number for record in finish(engine, run, tasks)] == [9, 16]
    assert len(run.storage.list("runs/traces/4")) == 1


def test_a_node_with_another_version_is_named(engine: RayEngine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.engine.ray_pool.library_version", lambda: "0.0.1")
    with pytest.raises(RetroDBError, match=rf"node {socket.gethostname()}: this node has retrodb .* is 0\.0\.1"):
        finish(engine, run, tasks_of(Work(3)))


def test_a_node_without_the_library_is_named(
    engine: RayEngine, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "only_here.py").write_text(
        "class Foreign:\n    def __init__(self, *a, **k): ...\n    def begin(self, run): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from only_here import Foreign  # type: ignore[import-not-found]

    monkeypatch.setattr("retrodb.engine.ray_pool.TaskActor", Foreign)
    with pytest.raises(
        RetroDBError, match=r"^node [\w.:]+: this node has no Python module 'only_here'\. Install"
    ) as caught:
        finish(engine, run, [*tasks_of(Work(3)), *tasks_of(Work(4))])
    assert "\n" not in str(caught.value)


def test_a_node_that_does_not_see_the_database_is_named(
    engine: RayEngine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.abspath", lambda path: "/no/such/database")
    with pytest.raises(
        RetroDBError, match=r"^/no/such/database: the database is not there \(on node .*\)\. Put it in an object store"
    ):
        finish(engine, run, tasks_of(Work(3)))


def test_a_task_that_fits_on_no_node_is_refused(engine: RayEngine, run: Run) -> None:
    with pytest.raises(NotEnoughMemory, match=r"a task of 'work' needs a node with a CPU and .*MiB of memory"):
        engine.run(run, tasks_of(Work(3)), run_work, Progress(), extra_bytes=1 << 42)
    with pytest.raises(NotEnoughMemory, match=r"Give --memory \d+MiB or more\.$"):
        engine.run(run, tasks_of(Work(3)), run_work, Progress(), extra_bytes=3 << 30)
    assert finished_tasks(run.storage, run.id) == set()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://10.0.0.5:10001", "ray://10.0.0.5:10001: Ray Client runs no tasks of retrodb"),
        ("http://10.0.0.5:8265", "http://10.0.0.5:8265: this is a URL"),
        ("10.0.0.5", "10.0.0.5: this is no address of a Ray cluster. Give HOST:PORT"),
        ("10.0.0.5:ray", "no address of a Ray cluster"),
        ("10.0.0.5:0", "no address of a Ray cluster"),
        (":6379", "no address of a Ray cluster"),
        ("", "no address of a Ray cluster"),
    ],
)
def test_what_is_no_address_is_refused_at_once(address: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RayEngine(address=address)
    assert message in str(caught.value)


def test_a_cluster_that_does_not_answer_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.engine.ray_cluster._ANSWER_S", 1.5)
    monkeypatch.setattr("retrodb.engine.ray_cluster._CONNECTION", _Connection())
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RetroDBError, match=f"^{address}: no Ray cluster answers here within 2 s"):
            finish(RayEngine(address=address), run, tasks_of(Work(3)))
    with pytest.raises(RetroDBError, match=rf"^{address}: the Ray cluster cannot be reached \(Connection refused\)"):
        finish(RayEngine(address=address), run, tasks_of(Work(3)))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RetroDBError, match=r"^RAY_ADDRESS=127\.0\.0\.1:1: the Ray cluster cannot be reached"):
        finish(RayEngine(), run, tasks_of(Work(3)))
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(UsageError, match=r"^RAY_ADDRESS=nonsense: this is no address of a Ray cluster"):
        finish(RayEngine(), run, tasks_of(Work(3)))


def test_a_head_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = RayCluster(is_own=False, head="127.0.0.1:1")
    assert not cluster.has_head()
    monkeypatch.setattr("retrodb.engine.ray_cluster._HEAD_WITHIN_S", 0.0)
    with pytest.raises(RetroDBError, match=r"^127\.0\.0\.1:1: the head of the Ray cluster has not answered"):
        cluster.has_head()


def test_a_process_has_one_cluster(engine: RayEngine, run: Run) -> None:
    with pytest.raises(UsageError, match=r"^10\.0\.0\.5:6379: this process is connected to another Ray cluster"):
        finish(RayEngine(address="10.0.0.5:6379"), run, tasks_of(Work(3)))


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("retrodb.engine.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(MissingDependency):
        RayEngine()
    assert main(["embed", str(tmp_path / "db"), "--engine", "ray"]) == MissingDependency.exit_code
    message = "the engine 'ray' needs the extra 'ray'. Install it: pip install 'retrodb[ray]'."
    assert message in capsys.readouterr().err
