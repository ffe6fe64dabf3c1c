"""An update whose tasks are run by workers says which worker did what: in its steps, its metrics, and to its hook."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made_documents import made_text

import retrodb
from retrodb.database import Database
from retrodb.engine.worker import Worker, WorkerOptions
from retrodb.engine.worker_engine import WorkerEngine
from retrodb.engine.worker_tally import WorkerTally, by_machine, worker_name
from retrodb.facade.base import make_context
from retrodb.maintain.update.command import run_update
from retrodb.maintain.update.recipe import HooksRecipe, Recipe
from retrodb.store.storage import LocalStorage

from .update_model import Site


def test_steps_metrics_and_hook_name_the_workers(
    tmp_path: Path, made_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerEngine, "here", lambda engine: engine)  # small tasks are posted too
    site = Site(tmp_path, made_tokenizer)
    site.write("left", {f"d{number}": made_text(number, 90) for number in range(9)})
    site.write("right", {"r": made_text(50, 90)})
    hook = tmp_path / "hook.py"
    hook.write_text("import sys\nopen('steps.jsonl', 'w').write(sys.stdin.read())\n")
    site.recipe["hooks"] = {"on_success": f"{sys.executable} {hook}"}
    site.recipe["metrics"] = {"file": "m.prom"}
    monkeypatch.chdir(tmp_path)
    site.create()
    workers = [Worker(LocalStorage(site.path), WorkerOptions(idle_exit_s=4)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(worker.run) for worker in workers]
        result = site.update(retrodb.open(site.path, engine="workers", lease_s=5))
        num_finished = {future.result().worker: future.result().num_finished for future in running}
    steps = {step.stage: step for step in result.steps if step.stage != "ingest"}
    assert steps["embed"].workers.keys() <= num_finished.keys()
    done: dict[str, int] = dict.fromkeys(num_finished, 0)
    for step in result.steps:
        for name, tally in step.workers.items():
            done[name] += tally.num_tasks
    assert done == num_finished
    told = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [step["stage"] for step in told] == [step.stage for step in result.steps[:-1]]
    assert {name for step in told for name in step["workers"]} == {name for name, count in done.items() if count}
    num_embedded = sum(tally.num_tasks for tally in steps["embed"].workers.values())
    labels = f'database="{site.path}",machine="{socket.gethostname()}",stage="embed"'
    assert f"retrodb_update_worker_tasks{{{labels}}} {float(num_embedded)}" in (tmp_path / "m.prom").read_text()


def test_workers_of_one_machine_are_added_up() -> None:
    tallies = {
        worker_name("a-1", 7, "x"): WorkerTally(2, 1.5),
        worker_name("a-1", 8, "y"): WorkerTally(1, 0.5),
        worker_name("b", 7, "ray"): WorkerTally(4, 1.0),
    }
    assert by_machine(tallies) == {"a-1": WorkerTally(3, 2.0), "b": WorkerTally(4, 1.0)}


def test_a_hook_that_reads_nothing_and_leaves_a_child_ends_the_update(
    make_database: Callable[..., Database], capfd: pytest.CaptureFixture[str]
) -> None:
    """The lines of hundreds of workers are more than a pipe takes."""
    context = make_context(make_database({}).path)
    workers = {worker_name("machine", number, "a"): WorkerTally(1, 1.0) for number in range(5000)}
    leave = "import subprocess; print(subprocess.Popen(['sleep', '40'], stdout=subprocess.DEVNULL).pid)"
    recipe = Recipe(hooks=HooksRecipe(on_success=shlex.join([sys.executable, "-c", leave])))
    started = time.monotonic()
    result = run_update(context, recipe, {"embed": lambda: iter([("", lambda: context.engine.work.update(workers))])})
    os.kill(int(capfd.readouterr().err), signal.SIGTERM)
    assert time.monotonic() - started < 20
    assert [len(step.workers) for step in result.steps] == [5000, 0]
