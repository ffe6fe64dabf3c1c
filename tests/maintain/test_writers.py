"""Many processes write one database at the same time: no commit is lost, and readers see only whole snapshots."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_documents import WORDS, made_text, write_documents
from reading import live_texts

from retrodb.database import Database
from retrodb.errors import ConflictError
from retrodb.format.entries import AttributeEntry

Make = Callable[..., Database]
ROLES = ("ingest", "filter", "compact", "tag")


def pair(name: str) -> dict[str, str]:
    """Two documents that are always added and deleted together."""
    return {f"{name}-left": made_text(abs(hash_of(name)), 80), f"{name}-right": made_text(abs(hash_of(name)) + 1, 150)}


def hash_of(name: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(name.encode(), "big") % (1 << 40)


def patiently(act: Callable[[], Any]) -> None:
    """Repeat a command until it succeeds, as its error message says."""
    for attempt in range(1000):
        try:
            act()
            return
        except ConflictError:
            time.sleep(0.01 * min(attempt, 10))
    raise AssertionError("a writer never got its turn")


def write(path: str, folder: str, number: int, commits: int, failures: Any) -> None:
    """One writer: its role says what it commits."""
    try:
        role = ROLES[number % len(ROLES)]
        for turn in range(commits):
            name = f"w{number}x{turn}"

            def act(role: str = role, name: str = name) -> None:
                database = Database(path)
                if role == "ingest":
                    database.ingest([write_documents(Path(folder, f"{name}.jsonl"), pair(name))], source=f"s{number}")
                elif role == "filter":
                    database.filter(doc_ids=list(pair(name)), reason=f"r{number}")
                elif role == "compact":
                    database.compact(min_deleted=0)
                else:
                    Path(folder, f"{name}.txt").write_text(WORDS[hash_of(name) % len(WORDS)])
                    database.tag(name, wordlist=str(Path(folder, f"{name}.txt")))

            patiently(act)
    except BaseException:
        failures.put(traceback.format_exc())
        raise


def read(path: str, done: Event, failures: Any, reads: Any) -> None:
    """One reader: every snapshot that it opens is whole."""
    try:
        rng = np.random.default_rng(0)
        while not done.is_set():
            database = Database(path)
            head = database.view().snapshot.number
            check_whole(database, int(rng.integers(1, head + 1)) if rng.random() < 0.3 and head else None)
            with reads.get_lock():
                reads.value += 1
    except BaseException:
        failures.put(traceback.format_exc())
        raise


def check_whole(database: Database, as_of: int | None = None) -> dict[str, str]:
    """The live documents by id. Each has the text that was written, and none is without the other of its pair."""
    texts = live_texts(database, as_of)
    for doc_id, text in texts.items():
        name = doc_id.rpartition("-")[0]
        assert texts.keys() >= pair(name).keys(), f"half of {name} in snapshot {as_of}"
        assert text == pair(name)[doc_id]
    return texts


def soak(value: tuple[int, int]) -> Any:
    return pytest.param(*value, marks=pytest.mark.soak)


@pytest.mark.parametrize(("writers", "commits"), [(4, 6), soak((8, 50))])
def test_no_commit_is_lost_and_readers_see_whole_snapshots(
    writers: int, commits: int, make_database: Make, tmp_path: Path
) -> None:
    filtered = [n for n in range(writers) if ROLES[n % len(ROLES)] == "filter"]
    base = {k: v for n in filtered for turn in range(commits) for k, v in pair(f"w{n}x{turn}").items()}
    database = make_database(base | pair("kept"))
    start = database.view().snapshot.number
    context = multiprocessing.get_context("spawn")
    done, failures, reads = context.Event(), context.Queue(), context.Value("i", 0)
    reader = context.Process(target=read, args=(database.path, done, failures, reads))
    work = [
        context.Process(target=write, args=(database.path, str(tmp_path), n, commits, failures)) for n in range(writers)
    ]
    for process in (reader, *work):
        process.start()
    for process in work:
        process.join()
    done.set()
    reader.join()
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in (reader, *work)] == [0] * (writers + 1)
    assert reads.value > 0
    snapshots = database.snapshots()[start + 1 :]
    by_command = {role: sum(each.command == role for each in snapshots) for role in ROLES}
    for role in ("ingest", "filter", "tag"):
        assert by_command[role] == commits * sum(ROLES[n % len(ROLES)] == role for n in range(writers))
    assert by_command["compact"] > 0
    assert [each.snapshot for each in snapshots] == list(range(start + 1, start + 1 + len(snapshots)))
    expected = {k for n in range(writers) if n % 4 == 0 for turn in range(commits) for k in pair(f"w{n}x{turn}")}
    assert check_whole(database).keys() == expected | pair("kept").keys()
    assert len(database.view().snapshot.names(AttributeEntry)) == by_command["tag"]
    database.compact(min_deleted=0)
    assert check_whole(database).keys() == expected | pair("kept").keys()
    assert database.check(read_data=True).damaged == ()
