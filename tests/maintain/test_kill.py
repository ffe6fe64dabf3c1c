"""SIGKILL at random moments: the database opens with the old or the new snapshot, and the command can be repeated."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from made_documents import made_text

import retrodb
from retrodb.database import Database
from retrodb.errors import WorkerDied
from retrodb.format.entries import IndexEntry
from retrodb.store.snapshots import snapshot_numbers
from retrodb.store.storage import LocalStorage

from .update.update_model import CLOCK, Site

OLD = {f"d{n}": made_text(n, 150) for n in range(20)}
NEW = {**{f"d{n}": made_text(n, 150) for n in range(14)}, **{f"n{n}": made_text(100 + n, 150) for n in range(6)}}
PRELOADED = [
    "faiss",
    "numba",
    "torch",
    "pyarrow.parquet",
    "retrodb.stages.neighbours.command",
    "retrodb.stages.neighbours.repair",
]


@dataclass(frozen=True)
class Killed:
    """A command that is killed."""

    run: Callable[[Database, Path], object]  # gets the recipe's file
    prepare: tuple[str, ...] = ()  # commands that are run before, so that this one has work
    is_damaged: bool = False  # whether a file is damaged before it runs


# The files of the source "left" have changed when these begin.
COMMANDS = {
    "update": Killed(lambda db, recipe: db.update(recipe)),
    "filter": Killed(lambda db, recipe: db.filter(where="doc_id like '%1'", reason="ones")),
    "index": Killed(lambda db, recipe: train_in_groups(db)),
    "repair-neighbours": Killed(lambda db, recipe: db.repair_neighbours(), ("ingest", "embed", "index")),
    "check-repair": Killed(lambda db, recipe: db.repair(), ("damage",), is_damaged=True),
    "compact": Killed(lambda db, recipe: db.compact(min_deleted=0.0), ("update",)),
    "gc": Killed(lambda db, recipe: db.gc(grace=timedelta(0), keep_snapshots=1), ("update",)),
}
WITH_WORKERS = ["update", "compact"]
STEPS: dict[str, Callable[[Database, Path], object]] = {
    "ingest": lambda db, recipe: db.ingest([recipe.parent / "left.jsonl"], source="left", mirror=True),
    "embed": lambda db, recipe: db.embed(),
    "index": lambda db, recipe: db.index(),
    "update": lambda db, recipe: db.update(recipe),
    "damage": lambda db, recipe: damage(db),
}


def train_in_groups(db: Database) -> object:
    """A new codebook of lists in groups, unless the database has it."""
    entry, factory = db.view().snapshot.existing(IndexEntry, "default"), "IVF2(IVF2,Flat),SQ8"
    return db.index(factory=factory, retrain=entry.factory != factory)


class Ground:
    """Prepared databases, each copied for every kill."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder = folder
        self.site = Site(folder, tokenizer, "old")
        self.site.write("left", OLD)
        right = {f"r{n}": made_text(50 + n, 150) for n in range(7)}
        self.site.write("right", {name: right[name] for name in list(right)[:6]})
        self.site.update(self.site.create())
        self.site.write("left", NEW)
        self.site.write("right", right)  # so that two shards are new, and workers share them
        self.recipe = self.site.config()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    @functools.cache  # noqa: B019 - one ground lives as long as the tests
    def prepared(self, command: str) -> tuple[Path, dict[str, object], float]:
        """The database before a command, its state after an undisturbed run, and the duration of that run in seconds."""
        before = Path(shutil.copytree(self.site.path, self.folder / f"{command}-before"))
        for step in COMMANDS[command].prepare:
            STEPS[step](open_at(before), self.recipe)
        after = Path(shutil.copytree(before, self.folder / f"{command}-after"))
        started = time.monotonic()
        process = self.start(after, command)
        process.join()
        assert process.exitcode == 0
        return before, state(after), time.monotonic() - started

    def start(self, path: Path, command: str, workers: int = 1) -> multiprocessing.process.BaseProcess:
        process = self.context.Process(target=run_command, args=(path, self.recipe, command, workers))
        process.start()
        return process


@pytest.fixture(scope="module")
def ground(made_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield Ground(tmp_path_factory.mktemp("kill"), made_tokenizer)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_command_leaves_the_old_or_new_snapshot_and_can_be_repeated(
    ground: Ground, command: str, seed: int
) -> None:
    kill_driver(ground, command, seed)


@pytest.mark.parametrize("command", WITH_WORKERS)
def test_a_killed_worker_ends_the_command_which_can_be_repeated(ground: Ground, command: str) -> None:
    kill_worker(ground, command, 0)


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_a_hundred_kills(ground: Ground, command: str) -> None:
    for seed in range(100, 120):
        kill_driver(ground, command, seed)
    for seed in range(100, 110 if command in WITH_WORKERS else 100):
        kill_worker(ground, command, seed)


def kill_driver(ground: Ground, command: str, seed: int) -> None:
    """Kill a command at a random moment of its run, check the database, and run the command again."""
    before, undisturbed, elapsed_s = ground.prepared(command)
    path = Path(shutil.copytree(before, ground.folder / f"{command}-{seed}"))
    process = ground.start(path, command)
    time.sleep(random.Random(f"{command}{seed}").uniform(0, 1.1 * elapsed_s))
    process.kill()
    process.join()
    look_and_run_again(ground, path, command, before, undisturbed)


def kill_worker(ground: Ground, command: str, seed: int) -> None:
    """Kill the first worker process that a command starts, a random moment later."""
    before, undisturbed, _ = ground.prepared(command)
    path = Path(shutil.copytree(before, ground.folder / f"{command}-worker-{seed}"))
    driver = ground.start(path, command, workers=2)
    while driver.is_alive() and not (workers := workers_of(driver.pid or 0)):
        time.sleep(0.01)
    assert workers, f"{command} started no worker"
    time.sleep(random.Random(seed).uniform(0, 0.5))
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(workers[0], signal.SIGKILL)
    driver.join()
    assert driver.exitcode in (0, WorkerDied.exit_code)
    look_and_run_again(ground, path, command, before, undisturbed)


def look_and_run_again(ground: Ground, path: Path, command: str, before: Path, undisturbed: dict[str, object]) -> None:
    db = open_at(path)
    if not COMMANDS[command].is_damaged:
        # A commit that was interrupted leaves at most a manifest segment, which the next run uses.
        unnamed = [each.fault for each in db.check(read_data=True).damaged]
        assert unnamed in ([], ["no snapshot names it"])
        assert db.search(["ka ban lo"], k=1)[0]
    assert newest(before) <= newest(path) <= undisturbed["snapshot"]
    COMMANDS[command].run(db, ground.recipe)
    assert state(path) == undisturbed
    assert open_at(path).check(read_data=True).damaged == ()
    shutil.rmtree(path)


def run_command(path: Path, recipe: Path, command: str, workers: int) -> None:
    """The work of the process that is killed. An update reports a dead worker in its result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrodb.stages.index.command.ROWS_OF_ONE_PROCESS", 0)  # small work uses workers, too
        result = COMMANDS[command].run(open_at(path, workers), recipe)
    raise SystemExit(getattr(result, "exit_code", 0))


def open_at(path: Path, workers: int = 1) -> Database:
    return retrodb.open(path, clock=CLOCK, workers=workers)


def damage(db: Database) -> None:
    """Flip a bit of a file that can be recomputed, and of one that can be rebuilt."""
    for kind in ("vectors", "naming"):
        path = Path(db.path, db.view().manifest.files(kind)[0].path)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def newest(path: Path) -> int:
    return snapshot_numbers(LocalStorage(path))[-1]


def state(path: Path) -> dict[str, object]:
    """The state of a database: live files by digest, shards, entries, and the number of snapshots."""
    view = open_at(path).view()
    return {
        "files": {record.path: record.digest.sha256.hex() for record in view.manifest.all_files()},
        "shards": view.shards.first_chunk.tolist(),
        "entries": dict(view.snapshot.entries),
        "snapshot": view.snapshot.number,
    }


def workers_of(pid: int) -> list[int]:
    """The worker processes of a driver, without the resource tracker."""
    found = []
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in children.read_text().split() if children.exists() else ():  # the driver may have ended
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"--multiprocessing-fork" in command and b"resource_tracker" not in command:
            found.append(int(child))
    return found
