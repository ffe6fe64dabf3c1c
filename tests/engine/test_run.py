"""A command on the same state is the same run; finished tasks are verified and skipped; any engine gives the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from flipped import forget_verified
from threadpoolctl import threadpool_info, threadpool_limits

from retrodb.engine.blas_threads import one_blas_thread
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import LineProgress, Progress, make_progress
from retrodb.engine.run import Engine, Run, add_counts, finished, forget_run, open_run, run_task
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord, dump_record, parse_record
from retrodb.errors import DamagedFileError, InputError, RetroDBError
from retrodb.format.records import FileDigest, FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage, Storage


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "db")


@dataclass(frozen=True)
class Number:
    """The payload and the result of a square."""

    number: int


SQUARE = TaskKind[Number, Number]("square", 1, Number)


def square(storage: Storage, task: Task[Number, Number], clock: str) -> TaskRecord[Number]:
    """Write a number's square, and leave a trace of having run."""
    number = task.payload.number
    storage.write(f"runs/traces/{number}-{len(storage.list('runs/traces'))}", b"")
    record = publish(storage, "rejects", f"rejects/{task.id}", lambda local: _write(local, f"{number**2} {clock}"))
    return TaskRecord(task.id, (record,), Number(number**2), {"done": 1})


def threads_of_products(storage: Storage, task: Task[Number, Number], clock: str) -> TaskRecord[Number]:
    return TaskRecord(task.id, result=Number(_threads_of_blas()))


def _threads_of_blas() -> int:
    """Of the library of numpy. Others, such as that of FAISS, may be loaded."""
    return max(
        (library["num_threads"] for library in threadpool_info() if "numpy.libs" in library["filepath"]), default=0
    )


def fail_at_three(storage: Storage, task: Task[Number, Number], clock: str) -> TaskRecord[Number]:
    if task.payload.number == 3:
        raise InputError("three", where="here", remedy="Fix it.")
    return square(storage, task, clock)


def die_at_three(storage: Storage, task: Task[Number, Number], clock: str) -> TaskRecord[Number]:
    import os

    if task.payload.number == 3:
        os._exit(9)
    return square(storage, task, clock)


def _write(local: Path, text: str) -> None:
    local.write_text(text)


def tasks(count: int) -> list[Task[Number, Number]]:
    return [SQUARE.task(Number(number)) for number in range(count)]


def traces(storage: LocalStorage) -> list[str]:
    return [path.rpartition("/")[2].partition("-")[0] for path in storage.list("runs/traces")]


def test_same_plan_is_the_same_run_with_the_first_clock(storage: LocalStorage) -> None:
    first = open_run(storage, "ingest", {"a": 1}, "2026-01-01T00:00:00.000000+00:00")
    assert open_run(storage, "ingest", {"a": 1}, "2027-01-01T00:00:00.000000+00:00") == first
    others = [open_run(storage, "ingest", {"a": 2}), open_run(storage, "embed", {"a": 1})]
    assert len({first.id, *(run.id for run in others)}) == 3
    assert others[0].clock.endswith("+00:00")


def test_damaged_plan_is_named(storage: LocalStorage) -> None:
    run = open_run(storage, "ingest", {})
    storage.write(f"runs/{run.id}/plan.json", b"{")
    with pytest.raises(DamagedFileError, match=rf"runs/{run.id}/plan\.json: not the JSON"):
        open_run(storage, "ingest", {})


def test_task_id_follows_from_everything_that_decides_its_output() -> None:
    def made(stage: str = "s", version: int = 1, payload: object = 1, inputs: tuple[str, ...] = ("x",)) -> str:
        return TaskKind(stage, version, NoResult).task({"p": payload}, list(inputs)).id

    ids = {made(), made(stage="t"), made(version=2), made(payload=2), made(inputs=("y",)), made(inputs=())}
    assert len(ids) == 6
    assert made() == TaskKind("s", 1, NoResult).task({"p": 1}, ["x"], weight=9).id


@pytest.mark.parametrize("rows", [None, "ab" * 32])
def test_completion_record_survives_its_json(rows: str | None) -> None:
    file = FileRecord("vectors", "s", "vectors/s/a", FileDigest(3, b"\xff" * 32, b"\x00" * 16), 7, 5, rows, 5)
    record = TaskRecord("t", (file,), Number(1), {"n": 2})
    assert parse_record(dump_record(record), Number, where="t.json") == record


def test_finished_tasks_are_skipped_and_records_come_in_the_tasks_order(storage: LocalStorage) -> None:
    run = open_run(storage, "squares", {})
    engine = LocalEngine()
    engine.run(run, tasks(2), square, Progress())
    records = engine.run(run, tasks(4)[::-1], square, Progress())
    assert [record.result.number for record in records] == [9, 4, 1, 0]
    assert sorted(traces(storage)) == ["0", "1", "2", "3"]
    assert add_counts(records) == {"done": 4}


def test_the_outputs_of_finished_tasks_are_hashed_once_in_a_process(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(storage, "squares", {})
    LocalEngine().run(run, tasks(5), square, Progress())
    forget_verified()  # as in another process
    opened: list[str] = []
    real_open = Path.open

    def counting_open(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        opened.append(path.name)
        return real_open(path, mode, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", counting_open)
    for _ in range(2):
        LocalEngine().run(run, tasks(5), square, Progress())
    assert [opened.count(task.id) for task in tasks(5)] == [1] * 5


def lose_output(storage: LocalStorage, run: Run, task: Task) -> None:
    storage.delete(f"rejects/{task.id}")


def damage_output(storage: LocalStorage, run: Run, task: Task) -> None:
    storage.write(f"rejects/{task.id}", b"other")


def tear_record(storage: LocalStorage, run: Run, task: Task) -> None:
    storage.write(f"runs/{run.id}/tasks/{task.id}.json", b'{"task": "')


@pytest.mark.parametrize("verified_here", [1 << 28, 0])
@pytest.mark.parametrize("harm", [lose_output, damage_output, tear_record])
def test_task_whose_output_or_record_is_harmed_is_done_again(
    storage: LocalStorage,
    harm: Callable[[LocalStorage, Run, Task], None],
    verified_here: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("retrodb.engine.run._VERIFIED_HERE_BYTES", verified_here)
    run, [task] = open_run(storage, "squares", {}), tasks(1)
    first = run_task(run, task, square)
    harm(storage, run, task)
    assert finished(run, task) is None
    assert LocalEngine().run(run, [task], square, Progress()) == [first]
    assert finished(run, task) == first


def test_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    made = []
    for workers in (1, 3):
        storage = LocalStorage(tmp_path / str(workers))
        run = open_run(storage, "squares", {}, "2026-01-01T00:00:00.000000+00:00")
        made.append(LocalEngine(workers).run(run, tasks(7), square, Progress()))
    assert made[0] == made[1]


def write_process(storage: Storage, task: Task[Number, Number], clock: str) -> TaskRecord[Number]:
    import os

    return TaskRecord(task.id, result=Number(os.getpid()))


def test_shared_processes_are_started_once_for_several_runs(storage: LocalStorage) -> None:
    runs = [open_run(storage, "squares", {"number": number}) for number in range(3)]

    def processes(engine: Engine) -> set[int]:
        return {record.result.number for run in runs for record in engine.run(run, tasks(4), write_process, Progress())}

    with LocalEngine(2).sharing_processes() as engine:
        assert len(processes(engine)) <= 2
        with pytest.raises(InputError):
            engine.run(open_run(storage, "squares", {}), tasks(40), fail_at_three, Progress())
        assert len(engine.run(open_run(storage, "squares", {}), tasks(4), square, Progress())) == 4
    with LocalEngine().sharing_processes() as engine:
        assert len(engine.run(open_run(storage, "squares", {"alone": 1}), tasks(4), square, Progress())) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_task_comes_through_and_finished_work_is_kept(storage: LocalStorage, workers: int) -> None:
    run = open_run(storage, "squares", {})
    with pytest.raises(InputError, match=r"here: three\. Fix it\."):
        LocalEngine(workers).run(run, tasks(4), fail_at_three, Progress())
    assert finished(run, tasks(1)[0]) is not None
    assert len(LocalEngine().run(run, tasks(4), square, Progress())) == 4


def test_worker_that_dies_is_told(storage: LocalStorage) -> None:
    run = open_run(storage, "squares", {})
    with pytest.raises(RetroDBError, match=r"a worker process died.*fewer --workers"):
        LocalEngine(2).run(run, tasks(4), die_at_three, Progress())
    assert len(LocalEngine().run(run, tasks(4), square, Progress())) == 4


def test_continuing_says_what_was_found(storage: LocalStorage, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run(storage, "squares", {})
    LocalEngine().run(run, tasks(2), square, Progress())
    LocalEngine().run(run, tasks(3), square, LineProgress())
    assert "2 of 3 tasks were finished earlier and verified" in capsys.readouterr().err


def test_large_outputs_of_finished_tasks_are_verified_by_the_workers(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(storage, "squares", {})
    first = LocalEngine().run(run, tasks(3), square, Progress())
    monkeypatch.setattr("retrodb.engine.run._VERIFIED_HERE_BYTES", 0)
    executed: list[Task] = []
    real_execute = LocalEngine.execute

    def execute(engine: LocalEngine, run: Run, tasks: list[Task], *arguments: object, **options: object) -> object:
        executed.extend(tasks)
        return real_execute(engine, run, tasks, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalEngine, "execute", execute)
    records = LocalEngine().run(run, tasks(4), square, LineProgress())
    assert (executed, records[:3]) == (tasks(4), first)
    assert sorted(traces(storage)) == ["0", "1", "2", "3"]  # none of them ran twice
    assert "3 of 4 tasks were finished earlier and are verified first" in capsys.readouterr().err


def test_progress_is_lines_where_there_is_no_terminal_and_nothing_when_switched_off() -> None:
    assert isinstance(make_progress(), LineProgress)
    assert type(make_progress(False)) is Progress


def test_lines_tell_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 5.0, 20.0])
    monkeypatch.setattr("retrodb.engine.progress.time.monotonic", lambda: next(now))
    with LineProgress().stage("embed", 1000, "chunks") as bar:
        bar.advance(100)
        bar.advance(300)
    assert capsys.readouterr().err == "embed: 400 of 1,000 chunks (20 chunks/s) 30 s left\n"


@pytest.mark.parametrize("num_deleted", range(5))
def test_a_run_that_is_forgotten_leaves_nothing_even_if_that_was_interrupted(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, num_deleted: int
) -> None:
    run = open_run(storage, "square", {"a": 1})
    other = open_run(storage, "square", {"a": 2})
    for name in ("near/facts/0.npy", "tasks/0.json", "spool/a/b.arrow"):
        storage.write(f"runs/{run.id}/{name}", b"")
    delete, left = LocalStorage.delete, [num_deleted]

    def interrupted(self: LocalStorage, path: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        delete(self, path)

    monkeypatch.setattr(LocalStorage, "delete", interrupted)
    if num_deleted < 4:
        with pytest.raises(KeyboardInterrupt):
            forget_run(run)
        assert storage.exists(f"runs/{run.id}/plan.json"), "the same command finds the run again"
        left[0] = 4
    forget_run(run)
    assert storage.list("runs") == [f"runs/{other.id}/plan.json"]
    assert [path.name for path in (storage.root / "runs").iterdir()] == [other.id]


@pytest.mark.skipif(_threads_of_blas() == 0, reason="numpy has no BLAS library of its own here")
def test_a_product_takes_one_thread_in_a_task_and_as_many_as_before_after_it(storage: LocalStorage) -> None:
    task = SQUARE.task(Number(1))
    with threadpool_limits(2, user_api="blas"):
        record = run_task(open_run(storage, "products", 1), task, threads_of_products)
        assert (record.result.number, _threads_of_blas()) == (1, 2)


@pytest.mark.skipif(_threads_of_blas() == 0, reason="numpy has no BLAS library of its own here")
def test_tasks_of_several_threads_share_the_limit() -> None:
    with threadpool_limits(2, user_api="blas"):
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert _threads_of_blas() == 1, "the second still runs"
        second.__exit__(None, None, None)
        assert _threads_of_blas() == 2
