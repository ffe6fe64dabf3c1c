"""Runs that have not committed: listed, inspected, retried, cancelled, committed, and kept by garbage collection."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.engine.attempts import Attempt, StoredError, claim, sign
from retrodb.engine.posted import posted_tasks
from retrodb.engine.run import Run, open_run, record_path, run_is_open
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.engine.worker import Worker, WorkerOptions
from retrodb.engine.worker_engine import WorkerEngine
from retrodb.errors import ConflictError, InputError, UsageError
from retrodb.format.json_codec import to_json
from retrodb.maintain.run_progress import RunProgress
from retrodb.maintain.runs import read_log
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import LocalStorage, Storage
from retrodb_cli.main import main
from retrodb_cli.runs import progress_line

Make = Callable[..., Database]
TASK = "b" * 32


@pytest.fixture(autouse=True)
def _every_task_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerEngine, "here", lambda engine: engine)


def remote(database: Database) -> Database:
    return retrodb.open(database.path, engine="workers", lease_s=2)


def texts(count: int) -> dict[str, str]:
    return {f"d{number}": made_text(number, 100) for number in range(count)}


def interrupted(database: Database, command: str = "embed") -> Run:
    """The run of a command that was killed."""
    return open_run(LocalStorage(database.path), command, {"made": command}, "2026-01-01T00:00:00+00:00")


@contextmanager
def posted(database: Database) -> Iterator[Future[object]]:
    """An embedding that waits for workers, in a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(remote(database).embed)
        deadline = time.monotonic() + 20
        while not LocalStorage(database.path).list("queue"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield waiting


def work(database: Database) -> int:
    return Worker(LocalStorage(database.path), WorkerOptions(idle_exit_s=2)).run().num_finished


def test_a_posted_run_is_listed_and_committed_by_the_command_that_waits(make_database: Make) -> None:
    database = make_database(texts(3))
    assert database.runs() == []
    with posted(database) as waiting:
        [run] = database.runs()
        assert (run.command, run.state, run.num_tasks, run.num_finished) == ("embed-pending", "posted", 1, 0)
        assert run.snapshot == database.stats().snapshot
        assert work(database) > 1
        assert waiting.result(20)
    assert database.runs() == []
    assert database.stats().snapshot == run.snapshot + 1


def test_a_cancelled_run_can_be_run_again(make_database: Make) -> None:
    database = make_database(texts(3))
    with posted(database) as waiting:
        [run] = database.runs()
        assert database.cancel_run(run.run[:8]).state == "cancelled"
        with pytest.raises(ConflictError, match="was cancelled"):
            waiting.result(20)
    assert [run.state for run in database.runs()] == ["cancelled"]
    database.embed()
    assert database.runs() == []


def test_a_command_of_this_machine_is_cancelled_too(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make_database(texts(3))
    from retrodb.stages import transaction

    original = transaction.open_run

    def cancelled_at_once(*arguments: object, **options: object) -> Run:
        run = original(*arguments, **options)  # type: ignore[arg-type]
        database.cancel_run(run.id)
        return run

    monkeypatch.setattr(transaction, "open_run", cancelled_at_once)
    with pytest.raises(ConflictError, match="this 'embed' was cancelled"):
        database.embed()
    assert database.stats().spaces == ()


def test_attempts_are_shown_with_their_worker_and_error(make_database: Make) -> None:
    database = make_database(texts(2))
    run = interrupted(database)
    for number in (1, 2, 3):
        claim(run.storage, Attempt(run.id, TASK, number), f"worker-{number}", TASK, "2026-01-01T00:00:00+00:00")
    error = StoredError.of(InputError("bad", where="here", remedy="Fix it."))
    sign(run.storage, Attempt(run.id, TASK, 2), 1, "failed", error)
    run.storage.write(Attempt(run.id, TASK, 2).log_path, b"what happened\n")
    shown = database.show_run(run.id[:6])
    assert [(a.worker, a.state) for a in shown] == [
        ("worker-1", "lost"),
        ("worker-2", "failed"),
        ("worker-3", "running"),
    ]
    assert shown[1].error == "here: bad. Fix it."
    assert not shown[2].is_straggler  # nothing has finished to compare it with
    assert database.run_log(run.id, TASK[:3]).text == "what happened\n"
    [summary] = database.runs()
    assert (summary.state, summary.num_failed) == ("open", 0)  # of posted tasks


def test_a_straggler_is_marked(make_database: Make) -> None:
    database = make_database(texts(2))
    run = interrupted(database)
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    for number in range(4):
        claim(run.storage, Attempt(run.id, f"{number}" * 32, 1), "worker", "x", now)
        run.storage.write(f"runs/{run.id}/tasks/{str(number) * 32}.json", b"{}")
    claim(run.storage, Attempt(run.id, TASK, 1), "worker", TASK, "2026-01-01T00:00:00+00:00")
    assert [a.task for a in database.show_run(run.id) if a.is_straggler] == [TASK]


@pytest.mark.parametrize("method", ["show_run", "retry_run", "cancel_run", "command_of_run"])
def test_a_run_is_found_by_the_beginning_of_its_id(make_database: Make, method: str) -> None:
    database = make_database(texts(2))
    with pytest.raises(UsageError, match="there is no open run 'abc'"):
        getattr(database, method)("abc")
    interrupted(database, "embed")
    interrupted(database, "index")
    with pytest.raises(UsageError, match="there are 2 of them: open run ''"):
        getattr(database, method)("")


def test_a_log_of_a_task_that_nobody_had_is_refused(make_database: Make) -> None:
    database = make_database(texts(2))
    run = interrupted(database)
    with pytest.raises(UsageError, match="there is no task 'ff'"):
        read_log(database._context, run.id, "ff")


def test_runs_commit_runs_the_command_again(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first process was killed while it waited."""
    database = make_database(texts(3))
    monkeypatch.chdir(tmp_path)

    def die(*_: object) -> object:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("retrodb.engine.worker_engine._Posted._records", die)
        with pytest.raises(SystemExit):
            main(["embed", "db", "--engine", "workers", "--lease", "2s"])
    [run] = database.runs()
    assert run.state == "posted"
    monkeypatch.chdir("/")
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work, database)
        assert main(["runs", "commit", str(tmp_path / "db"), run.run[:8]]) == 0
        worker.result(20)
    assert f"retrodb embed {tmp_path}/db --engine workers" in capsys.readouterr().err
    assert len(database.stats().spaces) == 1


def test_a_run_of_a_python_call_has_no_command_line(make_database: Make) -> None:
    database = make_database(texts(2))
    run = interrupted(database)
    with pytest.raises(UsageError, match="no command line is known"):
        database.command_of_run(run.id)


def test_collection_keeps_the_snapshot_that_an_open_run_was_planned_on(make_database: Make, tmp_path: Path) -> None:
    database = make_database(texts(2))
    run = interrupted(database)
    planned_on = database.stats().snapshot
    for number in range(3):
        database.ingest(
            [write_documents(tmp_path / f"{number}.jsonl", {f"e{number}": made_text(-number, 80)})], source="more"
        )
    database.gc(keep_snapshots=1, grace=timedelta(0))
    storage = LocalStorage(database.path)
    assert read_snapshot(storage, planned_on).expired_at is None
    assert read_snapshot(storage, planned_on + 1).expired_at is not None
    database.cancel_run(run.id)
    database.gc(keep_snapshots=1, grace=timedelta(0))
    assert read_snapshot(storage, planned_on).expired_at is not None


def test_a_purge_cancels_open_runs_and_says_so(make_database: Make) -> None:
    database = make_database(texts(3))
    run = interrupted(database)
    assert database.purge(["d1"], dry_run=True).cancelled_runs == (run.id,)
    assert [state.state for state in database.runs()] == ["open"]
    result = database.purge(["d1"])
    assert result.cancelled_runs == (run.id,)
    assert result.is_clean
    assert run_is_open(run.storage, run.id)
    assert [state.state for state in database.runs() if state.run == run.id] == ["cancelled"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "workers", "--workers", "2"], "An engine of workers has no number of processes"),
        (["--lease", "5s"], "--lease needs --engine workers"),
        (["--engine", "workers", "--lease", "0s"], "a lease of 0.0 s"),
        (["--engine", "mpi"], "Invalid value for '--engine'"),
        (["--engine", "ray", "--workers", "2"], "A Ray cluster runs as many processes as it has room for"),
        (["--engine", "ray", "--lease", "5s"], "--lease needs --engine workers"),
        (["--ray-address", "auto"], "--ray-address needs --engine ray"),
        (["--engine", "ray", "--ray-address", "ray://head:10001"], "Ray Client runs no tasks of retrodb"),
    ],
)
def test_options_that_an_engine_does_not_have_are_refused(
    make_database: Make, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    database = make_database(texts(2))
    assert main(["embed", database.path, *options]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_engine_is_refused(make_database: Make) -> None:
    with pytest.raises(UsageError, match="no engine 'spark'"):
        retrodb.open(make_database(texts(2)).path, engine="spark")


def test_the_progress_of_a_run_has_its_rate_and_the_time_left(
    make_database: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    database = make_database(texts(3))
    with posted(database) as waiting:
        [run] = database.runs()
        before = database.run_progress(run.run[:8])
        assert (before.stages, before.num_tasks, before.num_finished) == (("embed-pending",), 1, 0)
        assert (before.tasks_per_s, before.left_s, before.done_fraction) == (None, None, 0.0)
        assert main(["runs", "show", database.path, run.run]) == 0
        assert "0 of 1 tasks have ended (0% of the work)" in capsys.readouterr().out
        assert main(["runs", "show", database.path, run.run, "--json"]) == 0
        [line] = capsys.readouterr().out.splitlines()
        shown = json.loads(line)
        assert (shown["message_type"], shown["num_tasks"], shown["left_s"]) == ("run_progress", 1, None)
        work(database)
        assert waiting.result(20)


@pytest.mark.parametrize(
    ("finished", "percent"),
    [(0, "(0%"), (29, "(0%"), (2_900, "(2%"), (29_000, "(29%"), (99_999, "(99%"), (100_000, "(100%")],
)
def test_a_run_has_done_all_when_all_has_ended(finished: int, percent: str) -> None:
    progress = RunProgress("r", ("embed",), 100_000, finished, finished / 100_000, 1.0, 1.0)
    assert percent in progress_line(progress)


def test_a_run_that_ends_while_it_is_shown_is_no_half_answer(
    make_database: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database(texts(2))
    run = interrupted(database)

    def ended(_database: Database, run: str) -> RunProgress:
        raise UsageError(f"there is no open run '{run}'")

    claim(run.storage, Attempt(run.id, TASK, 1), "worker", TASK, "2026-01-01T00:00:00+00:00")
    monkeypatch.setattr(Database, "run_progress", ended)
    assert main(["runs", "show", database.path, run.id]) == 2
    assert capsys.readouterr().out == ""


@dataclass(frozen=True)
class Number:
    number: int


def run_nothing(storage: Storage, task: Task[Number, NoResult], clock: str) -> TaskRecord[NoResult]:
    del storage, clock
    return TaskRecord(task.id)


def test_the_time_left_follows_from_the_work_that_is_done(make_database: Make) -> None:
    database = make_database(texts(2))
    run = interrupted(database)
    kind = TaskKind[Number, NoResult]("nothing", 1, NoResult)
    tasks = [kind.task(Number(number), weight=weight) for number, weight in enumerate((99, 99, 199))]
    batch = posted_tasks(run, tasks, run_nothing, extra_bytes=0, lease_s=30)
    run.storage.write(batch.path, to_json(batch))
    began = datetime.now(UTC) - timedelta(seconds=10)
    claim(run.storage, Attempt(run.id, tasks[0].id, 1), "worker", tasks[0].id, began.isoformat())
    run.storage.write(record_path(run.id, tasks[0].id), b"{}")
    progress = database.run_progress(run.id)
    assert (progress.num_tasks, progress.num_finished, progress.done_fraction) == (3, 1, 0.25)
    assert progress.tasks_per_s == pytest.approx(0.1, rel=0.2)
    assert progress.left_s == pytest.approx(30, rel=0.2)
