"""Commands on a Ray cluster give what one machine gives: on one of their own, and on three nodes that die or are cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import orjson
import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

from process_tree import process_tree

from engine.cluster import COMMANDS, answers, build_here, commands_of, create, write_inputs
from engine.made_tasks import WORK, Work, run_work
from engine.ray_nodes import EVERY_TASK_ON_RAY, RayNodes
from retrodb.engine.attempts import attempts_of, read_claim
from retrodb.engine.progress import Progress
from retrodb.engine.ray_engine import RayEngine
from retrodb.engine.run import open_run
from retrodb.errors import EXIT_INTERRUPTED, EXIT_OK
from retrodb.store.storage import LocalStorage
from retrodb_cli.main import main


def test_a_command_on_a_cluster_of_its_own_can_be_interrupted(
    tmp_path: Path, made_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the cluster is left, Ray prints nothing, and the same command again continues."""
    inputs = write_inputs(tmp_path, 30)
    create(str(tmp_path / "db"), made_tokenizer)
    before = set(tmp_path.iterdir()), _folders_of_clusters()
    command = ["ingest", str(tmp_path / "db"), inputs["DOCUMENTS"], "--source", "made", "--json"]
    program = [sys.executable, "-c", EVERY_TASK_ON_RAY, *command, "--engine", "ray", "--ray-address", "local"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        while not list((tmp_path / "db").glob("runs/*/attempts/*")):
            assert process.poll() is None
            time.sleep(0.01)
        children = list(process_tree(process.pid))[1:]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (EXIT_INTERRUPTED, b"")
    note, _, error = errors.decode().splitlines()  # click ends the line of the terminal first
    assert note.startswith("a Ray cluster of this machine was started: it has ")
    assert orjson.loads(error)["message"] == "interrupted. Run the same command again to continue."
    assert len(children) > 3
    end = time.monotonic() + 10  # some see a moment later that the cluster has ended
    while [child for child in children if Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (set(tmp_path.iterdir()), _folders_of_clusters()) == before
    assert main(command) == EXIT_OK
    assert orjson.loads(capsys.readouterr().out)["num_added"] == 30


def _folders_of_clusters() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("retrodb-ray-*"))


@pytest.mark.soak
def test_nodes_that_die_in_every_stage_change_no_answer(tmp_path: Path, made_tokenizer: Path) -> None:
    inputs = write_inputs(tmp_path, 120)
    here = build_here(tmp_path, made_tokenizer, inputs)
    database, out = tmp_path / "there", tmp_path / "out"
    create(str(database), made_tokenizer)
    with RayNodes.of(database) as nodes:
        for command in commands_of(str(database), inputs, out):
            kills = nodes.num_kills
            nodes.run(command)
            assert nodes.num_kills > kills, command
    assert nodes.num_lost >= len(COMMANDS) // 2  # others had ended a moment before
    assert answers(str(database), out) == here


@pytest.mark.soak
def test_a_node_that_is_cut_off_and_works_on_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes work at a task. The one that was given up ends first, so its record counts; the other writes elsewhere."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the processes on the nodes
    for name, value in (("timeout_ms", 500), ("period_ms", 500), ("failure_threshold", 3)):
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    run = open_run(LocalStorage(tmp_path / "db"), "made", {"plan": 1}, "2026-01-01")
    task = WORK.task(Work(3, seconds=20))
    with RayNodes.of(tmp_path / "db") as nodes:

        def cut_off() -> None:
            while not nodes.attempts():
                time.sleep(0.05)
            nodes.cut_off(nodes.attempts().pop())

        other = threading.Thread(target=cut_off)
        other.start()
        [record] = RayEngine(address=nodes.address, libraries=("engine",)).run(run, [task], run_work, Progress())
        other.join()
    assert len(run.storage.list("runs/traces/3")) == 2
    assert record.files[0].path == f"rejects/{task.id}.parquet"
    [_, second] = attempts_of(run.storage, run.id)[task.id]
    assert run.storage.exists(f"rejects/{read_claim(run.storage, second).output}.parquet")
