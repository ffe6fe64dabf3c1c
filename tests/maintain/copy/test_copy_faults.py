"""A copy that dies anywhere leaves whole snapshots and is continued; of two writers of the destination none loses a commit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from faulty_storage import SURVIVED, Crash, FaultyStorage, faults_of
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import ConflictError, NotADatabaseError, RetroDBError
from retrodb.maintain.copy.command import run_copy
from retrodb.maintain.copy.transfer import Threads
from retrodb.maintain.snapshots.pins import execute_pin, plan_pin
from retrodb.stages.context import Context
from retrodb.store import storage as storage_module
from retrodb.store.snapshots import snapshot_numbers
from retrodb.store.storage import LocalStorage

from .test_copy import add, contents, named

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Snapshots 0 to 3: init, two documents, vectors, one more document."""
    database = make_database({"a": made_text(1, 150), "b": made_text(2, 150)})
    database.embed()
    add(database, tmp_path, "c")
    return database


def copied(path: Path) -> dict[str, bytes]:
    """The files of a copy, without unfinished ones and old records of the newest snapshot."""
    files = {name: data for name, data in contents(path).items() if not name.startswith("tmp/")}
    heads = sorted(name for name in files if name.startswith("heads/"))
    return {name: data for name, data in files.items() if name not in heads[:-1]}


@pytest.mark.parametrize("earlier", [None, 1])
def test_a_copy_survives_every_fault_of_the_destination(
    earlier: int | None, database: Database, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    before, number = tmp_path / "before", 0
    if earlier is not None:
        database.copy_to(before, snapshot=earlier)
    undisturbed = _start(before, tmp_path / "undisturbed")
    counting = FaultyStorage(LocalStorage(undisturbed))
    run_copy(Context(LocalStorage(database.path)), counting, transfers=1)
    expected = copied(undisturbed)
    assert len([name for name, _ in counting.operations if name == "stage"]) > 3
    for at, (operation, _) in enumerate(counting.operations):
        for fault in faults_of(operation):
            place = _start(before, tmp_path / f"copy-{number}")
            faulty = FaultyStorage(LocalStorage(place), at, fault)
            with suppress(Crash, RetroDBError):
                run_copy(Context(LocalStorage(database.path)), faulty, transfers=1)
            _look(place, database, earlier)
            database.copy_to(place)
            assert copied(place) == expected, (at, operation, fault)
            shutil.rmtree(place)
            number += 1
    assert database.runs() == []
    record_property(SURVIVED, number)


def _start(before: Path, place: Path) -> Path:
    return Path(shutil.copytree(before, place)) if before.exists() else place


def _look(place: Path, database: Database, earlier: int | None) -> None:
    """What is there is nothing, the earlier copy, or the new one; all of it is whole."""
    try:
        copy = retrodb.open(place)
        snapshot = copy.view().snapshot.number
    except NotADatabaseError:
        assert earlier is None
        return
    assert snapshot in (earlier, 3)
    assert named(place) == named(database.path, snapshot)
    assert copy.check(read_data=True).damaged == ()


def test_a_copy_survives_every_crash_at_the_source(database: Database, tmp_path: Path) -> None:
    counting = FaultyStorage(LocalStorage(database.path))
    run_copy(Context(counting), LocalStorage(tmp_path / "undisturbed"), transfers=1)
    before = contents(Path(database.path))
    for at in range(len(counting.operations)):
        place = tmp_path / f"copy-{at}"
        with suppress(Crash):
            run_copy(Context(FaultyStorage(LocalStorage(database.path), at, "crash")), LocalStorage(place), transfers=1)
        shutil.rmtree(Path(database.path, "tmp"))  # where the faulty storage leaves its half file
        database.copy_to(place)
        assert copied(place) == copied(tmp_path / "undisturbed")
        assert contents(Path(database.path)) == before, "the run that keeps the snapshot has ended"
        shutil.rmtree(place)


def test_a_killed_copy_keeps_its_snapshots_until_the_next_one_ends(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy", snapshot=1)
    counting = FaultyStorage(LocalStorage(database.path))
    run_copy(Context(counting), LocalStorage(_start(tmp_path / "copy", tmp_path / "twin")), since=1, transfers=1)
    at = next(index for index, (name, _) in enumerate(counting.operations) if name == "read_pieces")
    source = FaultyStorage(LocalStorage(database.path), at, "crash")
    with suppress(Crash):
        run_copy(Context(source), LocalStorage(tmp_path / "copy"), since=1, transfers=1)
    assert [(run.command, run.snapshot) for run in database.runs()] == [("copy", 2), ("copy", 3)]
    add(database, tmp_path, "d")
    database.copy_to(tmp_path / "elsewhere")
    assert len(database.runs()) == 2
    assert database.copy_to(tmp_path / "copy").snapshot == 4
    assert database.runs() == []


def test_a_copy_without_its_manifest_is_made_whole(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    [segment] = (tmp_path / "copy" / "manifests").iterdir()
    segment.unlink()
    assert database.copy_to(tmp_path / "copy").num_files == 1
    assert retrodb.open(tmp_path / "copy").check(read_data=True).damaged == ()


def test_a_copy_brings_a_lost_newest_snapshot_back(database: Database, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    database.copy_to(place, snapshot=1)
    database.copy_to(place)
    (place / database.view().snapshot.path).unlink()
    damaged = {damage.path for damage in retrodb.open(place).check().damaged}
    assert database.view().snapshot.path in damaged
    assert database.copy_to(place).new_snapshots == (3,)
    assert retrodb.open(place).check(read_data=True).damaged == ()


class InterruptedStorage(LocalStorage):
    """A destination where something else happens right before the n-th snapshot is published."""

    def __init__(self, root: Path, act: Callable[[], object], at: int) -> None:
        super().__init__(root)
        self._act, self._at = act, at

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if path.startswith("snapshots/"):
            self._at -= 1
            if self._at == -1:
                self._act()
        return super().put_if_absent(path, data)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_commit_in_the_destination_while_snapshots_are_published_stays(
    at: int, database: Database, tmp_path: Path
) -> None:
    """Before the first stub, between two, and before the copied snapshot."""
    place = tmp_path / "copy"
    database.copy_to(place)
    for name in ("d", "e", "f"):
        add(database, tmp_path, name)
    copy, own = retrodb.open(place), write_documents(tmp_path / "own.jsonl", {"own": made_text("own", 150)})
    destination = InterruptedStorage(place, lambda: copy.ingest([own], source="own"), at)
    with pytest.raises(ConflictError, match=rf"its snapshot {4 + at} \(ingest, .*\) is not in"):
        run_copy(Context(LocalStorage(database.path)), destination, transfers=1)
    head = copy.view().snapshot
    assert (head.number, head.parent) == (4 + at, 3)
    assert copy.sql("select doc_id from documents where source = 'own'").rows == [("own",)]
    assert add(copy, tmp_path, "later") == head.number + 1
    assert copy.check(read_data=True).damaged == ()
    with pytest.raises(ConflictError, match=rf"its snapshot {4 + at} \(ingest"):
        database.copy_to(place)


@pytest.mark.parametrize("at", [0, 1, 2, None])
def test_readers_see_the_earlier_snapshot_until_the_copied_one_is_there(
    at: int | None, database: Database, tmp_path: Path
) -> None:
    place, seen = tmp_path / "copy", []
    database.copy_to(place)
    for name in ("d", "e", "f"):
        add(database, tmp_path, name)

    def look() -> None:
        copy = retrodb.open(place)
        seen.append((copy.view().snapshot.number, copy.stats().num_documents, copy.snapshots()[-1].snapshot))
        assert copy.check(read_data=True).damaged == ()

    run_copy(Context(LocalStorage(database.path)), InterruptedStorage(place, look, -2 if at is None else at))
    look()
    assert seen[-1] == (6, 6, 6)
    assert seen[:-1] == ([] if at is None else [(3, 3, 3 + at)])


def test_a_command_in_the_destination_that_commits_after_a_copy_is_put_on_it(
    database: Database, tmp_path: Path
) -> None:
    database.copy_to(tmp_path / "copy")
    context = Context(LocalStorage(tmp_path / "copy"))
    plan = plan_pin(context, 3, "mine")
    for name in ("d", "e"):
        add(database, tmp_path, name)
    database.copy_to(tmp_path / "copy")
    assert execute_pin(context, plan).snapshot == 6
    copy = retrodb.open(tmp_path / "copy")
    assert (copy.view().snapshot.parent, copy.stats().num_documents) == (5, 5)


@pytest.mark.parametrize("earlier", [None, 1])
def test_two_copies_at_once_end_as_one(earlier: int | None, database: Database, tmp_path: Path) -> None:
    before = tmp_path / "before"
    if earlier is not None:
        database.copy_to(before, snapshot=earlier)
    one = _start(before, tmp_path / "one")
    database.copy_to(one)
    for attempt in range(5):
        place = _start(before, tmp_path / f"two-{attempt}")
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda _, place=place: database.copy_to(place), range(2)))
        assert {result.snapshot for result in results} == {3}
        assert copied(place) == copied(one)
    assert database.runs() == []


def test_a_copy_that_a_newer_one_overtakes_ends_right(database: Database, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    database.copy_to(place, snapshot=1)

    def overtake() -> None:
        add(database, tmp_path, "d")
        database.copy_to(place)

    result = run_copy(Context(LocalStorage(database.path)), InterruptedStorage(place, overtake, 0))
    copy = retrodb.open(place)
    assert (result.snapshot, copy.view().snapshot.number) == (3, 4)
    assert copy.view(3).snapshot.number == 3
    assert copy.check(read_data=True).damaged == ()


def test_the_first_error_ends_all_threads_and_is_raised() -> None:
    threads, done = Threads(3), []

    def work(item: int) -> None:
        threads.check()
        if item == 5:
            raise ValueError("five")
        done.append(item)

    with pytest.raises(ValueError, match="five"):
        threads.each(work, range(1_000_000))
    assert len(done) < 1_000
    threads.each(work, [1, 2])
    assert done[-2:] in ([1, 2], [2, 1])


def test_a_file_passes_in_pieces(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_PIECE", 100)
    sizes = []

    class Watching(LocalStorage):
        def write_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
            pieces = list(pieces)
            sizes.extend(map(len, pieces))
            super().write_pieces(path, pieces)

    run_copy(Context(LocalStorage(database.path)), Watching(tmp_path / "copy"))
    assert max(sizes) == 100
    assert named(tmp_path / "copy") == named(database.path)
    assert snapshot_numbers(LocalStorage(tmp_path / "copy")) == [0, 1, 2, 3]
