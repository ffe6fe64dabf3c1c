"""A copy has the same snapshots, files and answers, moves only what is missing, and hides no commit of anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import (
    ConflictError,
    DamagedFileError,
    MissingFileError,
    NotADatabaseError,
    RetroDBError,
    UsageError,
)
from retrodb.maintain.copy.command import run_copy
from retrodb.stages.context import Context
from retrodb.store.collection import named_by
from retrodb.store.snapshots import read_as_of
from retrodb.store.storage import LocalStorage

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Snapshots 0 to 4: init, ingest, embed, index, neighbours."""
    database = make_database({f"d{number}": made_text(number, 150) for number in range(12)})
    database.embed()
    database.index()
    database.neighbours(k=2)
    return database


def add(database: Database, tmp_path: Path, name: str) -> int:
    """Ingest one more document; the number of the snapshot."""
    path = write_documents(tmp_path / f"{name}.jsonl", {name: made_text(name, 150)})
    return database.ingest([path], source="made").snapshot


def collect(path: str | Path) -> tuple[int, ...]:
    """Expire all snapshots but the newest, and delete what nothing needs; which snapshots expired."""
    now = datetime.now(UTC)
    marked = retrodb.open(path, clock=(now + timedelta(days=1)).isoformat()).gc(keep_snapshots=1)
    retrodb.open(path, clock=(now + timedelta(days=10)).isoformat()).gc(keep_snapshots=1)
    return marked.expired_snapshots


def contents(path: Path) -> dict[str, bytes]:
    """All files, whatever they are."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def named(path: str | Path, at: int | None = None) -> dict[str, bytes]:
    """The files that a snapshot needs, and its own."""
    storage = LocalStorage(path)
    snapshot = read_as_of(storage, at)
    return {file: storage.read(file) for file in [snapshot.path, *named_by(storage, snapshot)]}


def found(database: Database) -> object:
    hits = database.search([made_text(3, 150), made_text(7, 40)], k=3)
    return [[(hit.chunk_id, hit.score, hit.text) for hit in each] for each in hits]


def test_a_copy_has_the_same_bytes_and_answers_and_every_command_works_on_it(
    database: Database, tmp_path: Path
) -> None:
    before = contents(Path(database.path))
    result = database.copy_to(tmp_path / "copy")
    copy = retrodb.open(tmp_path / "copy")
    assert contents(Path(database.path)) == before, "the source is not changed"
    assert named(copy.path) == named(database.path)
    assert (result.snapshot, result.new_snapshots, result.num_other_files) == (4, (4,), 0)
    assert result.num_files == len(named(copy.path)) - 1
    assert found(copy) == found(database)
    assert replace(copy.stats(), database="") == replace(database.stats(), database="")
    assert copy.check(read_data=True).damaged == ()
    assert [(s.snapshot, s.command, s.expired_at is None) for s in copy.snapshots()] == [
        (s.snapshot, s.command, s.snapshot == 4) for s in database.snapshots()
    ]
    assert copy.gc(grace=timedelta(0), keep_snapshots=1).num_marked_files == 0
    assert add(copy, tmp_path, "new") == add(database, tmp_path, "new") == 5
    assert copy.embed().num_chunks == database.embed().num_chunks > 0
    assert copy.filter(doc_ids=["d1"]).snapshot == 7
    assert copy.restore(4).snapshot == 8
    assert copy.check(read_data=True).damaged == ()


def test_a_second_copy_moves_nothing_and_a_later_one_only_what_is_new(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    before, mtimes = contents(tmp_path / "copy"), _mtimes(tmp_path / "copy")
    again = database.copy_to(tmp_path / "copy")
    assert (again.num_files, again.size_bytes, again.new_snapshots) == (0, 0, ())
    assert _mtimes(tmp_path / "copy") == mtimes
    old = named(database.path)
    add(database, tmp_path, "new")
    planned = database.copy_to(tmp_path / "copy", dry_run=True)
    assert contents(tmp_path / "copy") == before
    result = database.copy_to(tmp_path / "copy")
    assert replace(planned, dry_run=False) == result
    new = named(database.path)
    assert result.num_files == len(set(new) - set(old)) - 1 < 12
    assert result.num_other_files == len(set(old) - set(new)) - 1
    for number in (4, 5):
        assert named(tmp_path / "copy", number) == named(database.path, number)


def _mtimes(path: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_since_copies_every_later_snapshot(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy", snapshot=2)
    database.gc(keep_snapshots=2, grace=timedelta(days=1))  # expires 0 to 2
    for number in range(3):
        add(database, tmp_path, f"new{number}")
    database.gc(keep_snapshots=3, grace=timedelta(days=1))  # 5 to 7 stay
    result = database.copy_to(tmp_path / "copy", since=2)
    assert (result.snapshot, result.new_snapshots) == (7, (5, 6, 7))
    copy = retrodb.open(tmp_path / "copy")
    assert [s.snapshot for s in copy.snapshots() if s.expired_at is None] == [2, 5, 6, 7]
    for number in (5, 6, 7):
        assert named(copy.path, number) == named(database.path, number)
    assert copy.check(read_data=True).damaged == ()
    assert copy.restore(5).restored_snapshot == 5
    assert copy.stats().num_documents == 13


def test_since_needs_a_copy_that_has_the_snapshot(database: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not have snapshot 4.*--snapshot 4"):
        database.copy_to(tmp_path / "copy", since=4)
    with pytest.raises(UsageError, match=r"db: no snapshot 99. 'retrodb snapshots'"):
        database.copy_to(tmp_path / "copy", since=99)
    database.gc(keep_snapshots=1)
    with pytest.raises(UsageError, match=r"does not have snapshot 3\. Leave out '--since'"):
        database.copy_to(tmp_path / "copy", since=3)
    assert not (tmp_path / "copy").exists()
    with pytest.raises(UsageError, match="Give '--snapshot' or '--since'"):
        database.copy_to(tmp_path / "copy", since=4, snapshot=4)
    with pytest.raises(UsageError, match="no snapshot 99"):
        database.copy_to(tmp_path / "copy", snapshot=99)
    with pytest.raises(UsageError, match="Give 1 or more"):
        database.copy_to(tmp_path / "copy", transfers=0)
    database.copy_to(tmp_path / "copy")
    assert database.copy_to(tmp_path / "copy", since=4).num_files == 0


def test_an_older_snapshot_can_join_a_newer_one_and_the_newest_stays(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    result = database.copy_to(tmp_path / "copy", snapshot=2)
    assert (result.new_snapshots, result.num_files) == ((2,), 1)  # a segment
    copy = retrodb.open(tmp_path / "copy")
    assert copy.view().snapshot.number == 4
    assert named(copy.path, 2) == named(database.path, 2)
    assert copy.check(read_data=True).damaged == ()


def test_names_of_a_copied_snapshot_are_copied_and_can_be_given(database: Database, tmp_path: Path) -> None:
    database.pin(3, name="release-1")
    add(database, tmp_path, "new")
    result = database.copy_to(tmp_path / "copy", snapshot="release-1")
    assert (result.snapshot, result.pins) == (3, ("release-1",))
    copy = retrodb.open(tmp_path / "copy")
    assert copy.view("release-1").snapshot.number == copy.view().snapshot.number == 3
    later = database.copy_to(tmp_path / "copy", since="release-1")
    assert later.new_snapshots == (4, 5, 6)
    assert copy.view("release-1").snapshot.number == 3
    assert 3 not in copy.gc(keep_snapshots=1, grace=timedelta(0)).expired_snapshots
    number = add(database, tmp_path, "newer")
    database.pin(name="release-2")
    result = database.copy_to(tmp_path / "copy")
    assert (result.new_snapshots, result.pins) == ((number, number + 1), ("release-2",)), "a pin is a commit of its own"
    assert named(copy.path, number) == named(database.path, number)
    assert copy.view("release-2").snapshot.number == number
    add(database, tmp_path, "newest")
    assert database.copy_to(tmp_path / "copy").new_snapshots == (number + 2,)
    assert copy.copy_to(tmp_path / "restored", snapshot="release-2").pins == ("release-2",)


def test_a_damaged_or_missing_file_of_the_source_is_refused_by_name(database: Database, tmp_path: Path) -> None:
    [record] = database.view().manifest.files("vectors")
    path = Path(database.path, record.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=rf"{record.path}: checksum mismatch.*check --repair"):
        database.copy_to(tmp_path / "copy")
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedFileError, match=rf"{record.path}: {len(whole) - 1} bytes instead of {len(whole)}"):
        database.copy_to(tmp_path / "copy")
    path.unlink()
    with pytest.raises(MissingFileError, match=rf"{record.path}: file is missing.*check --repair"):
        database.copy_to(tmp_path / "copy")
    assert not (tmp_path / "copy" / record.path).exists()
    with pytest.raises(NotADatabaseError):
        retrodb.open(tmp_path / "copy")
    path.write_bytes(whole)
    database.copy_to(tmp_path / "copy")
    assert retrodb.open(tmp_path / "copy").check(read_data=True).damaged == ()


@pytest.mark.parametrize("kind", ["manifests", "rows", "blocks"])
def test_damage_of_files_without_a_record_is_found_too(kind: str, make_database: Make, tmp_path: Path) -> None:
    database = make_database({f"d{number}": made_text(number, 900) for number in range(60)})
    database.embed()
    file = Path(database.path, next(path for path in named(database.path) if path.startswith(f"{kind}/")))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=rf"{kind}/{file.name}: checksum mismatch"):
        database.copy_to(tmp_path / "copy")


def test_a_file_with_other_bytes_in_the_copy_is_found(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    [record] = database.view().manifest.files("vectors")
    path = tmp_path / "copy" / record.path
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    result = database.copy_to(tmp_path / "copy")
    assert (result.num_files, result.num_replaced_files, path.read_bytes()) == (1, 1, whole)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert database.copy_to(tmp_path / "copy").num_files == 0
    assert database.copy_to(tmp_path / "copy", verify=True, dry_run=True).num_files == 1
    assert database.copy_to(tmp_path / "copy", verify=True).num_replaced_files == 1
    assert path.read_bytes() == whole


def test_a_damaged_snapshot_of_the_copy_is_named_with_its_place_and_can_be_copied_again(
    database: Database, tmp_path: Path
) -> None:
    database.copy_to(tmp_path / "copy")
    for number in (2, 4):  # a stub, and the newest
        path = tmp_path / "copy" / LocalStorage(database.path).list("snapshots")[number]
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DamagedFileError, match=rf"^{path}: damaged snapshot\. If nothing but copies was written"):
            database.copy_to(tmp_path / "copy", snapshot=number)
        path.unlink()
        assert database.copy_to(tmp_path / "copy", snapshot=number).new_snapshots == (number,)
    assert named(tmp_path / "copy") == named(database.path)


def test_a_commit_that_only_the_copy_has_is_never_hidden(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    copy = retrodb.open(tmp_path / "copy")
    add(copy, tmp_path, "own")
    before = contents(tmp_path / "copy")
    for options in ({}, {"snapshot": 3}, {"since": 4}):  # the copy is ahead
        with pytest.raises(ConflictError, match=r"its snapshot 5 \(ingest, .*\) is not in .*A copy would hide it"):
            database.copy_to(tmp_path / "copy", **options)  # type: ignore[arg-type]
    add(database, tmp_path, "other")
    add(database, tmp_path, "more")
    with pytest.raises(ConflictError, match=r"its snapshot 5 \(ingest"):
        database.copy_to(tmp_path / "copy")
    assert contents(tmp_path / "copy") == before


def test_another_database_or_folder_is_refused(database: Database, make_database: Make, tmp_path: Path) -> None:
    other = make_database({"x": made_text("x", 150)}, "other")
    with pytest.raises(ConflictError, match="this is another database"):
        database.copy_to(other.path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"not empty: it contains 'thesis.txt'"):
        database.copy_to(tmp_path / "used")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "retrodb.toml").write_text("format_version = 2\n")
    with pytest.raises(ConflictError, match="the beginning of another database"):
        database.copy_to(tmp_path / "begun")
    for place in (database.path, f"{database.path}/backup", tmp_path):
        with pytest.raises(UsageError, match="one is in the other"):
            database.copy_to(place)


def test_a_recipe_is_copied_once_and_not_replaced(database: Database, tmp_path: Path) -> None:
    Path(database.path, "recipe.toml").write_text("# one\n")
    database.copy_to(tmp_path / "copy")
    Path(database.path, "recipe.toml").write_text("# two\n")
    database.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy" / "recipe.toml").read_text() == "# one\n"


def test_after_a_purge_the_copy_says_what_remains_and_how_to_delete_it(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    database.purge(["d3"])
    result = database.copy_to(tmp_path / "copy")
    assert result.purges
    assert result.num_other_files > 0
    copy = retrodb.open(tmp_path / "copy")
    assert copy.search([made_text(3, 150)], k=1)[0][0].doc_id != "d3"
    old = [path for path in named(copy.path, 4) if path not in named(copy.path)]
    collect(copy.path)
    assert not [path for path in old if (tmp_path / "copy" / path).exists() and not path.startswith("snapshots/")]
    assert copy.check(read_data=True).damaged == ()
    with pytest.raises(UsageError, match="expired"):
        database.copy_to(tmp_path / "copy", snapshot=4)


class ActingStorage(LocalStorage):
    """A destination where something else happens when the n-th file is written."""

    def __init__(self, root: Path, act: Callable[[], object], at: int) -> None:
        super().__init__(root)
        self._act, self._at = act, at

    def write_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
        super().write_pieces(path, pieces)
        self._at -= 1
        if self._at == 0:
            self._act()


def test_collection_of_the_source_keeps_what_is_copied(database: Database, tmp_path: Path) -> None:
    expected = named(database.path, 1)
    database.compact(min_deleted=0)
    database.filter(doc_ids=["d1"])
    database.compact(min_deleted=0)

    def meanwhile() -> None:
        assert [run.command for run in database.runs()] == ["copy"]
        assert 1 not in collect(database.path)

    context = Context(LocalStorage(database.path))
    run_copy(context, ActingStorage(tmp_path / "copy", meanwhile, 2), at=1, transfers=1)
    assert named(tmp_path / "copy") == expected
    assert database.runs() == []
    assert 1 in database.gc(keep_snapshots=1).expired_snapshots


def test_a_snapshot_that_expires_meanwhile_is_named(database: Database, tmp_path: Path) -> None:
    database.filter(doc_ids=["d1"])
    database.compact(min_deleted=0)

    def meanwhile() -> None:
        [run] = database.runs()
        database.cancel_run(run.run)
        collect(database.path)

    destination = ActingStorage(tmp_path / "copy", meanwhile, 1)
    with pytest.raises(MissingFileError, match="snapshot 4 expired while it was copied"):
        run_copy(Context(LocalStorage(database.path)), destination, at=4, transfers=1)


def test_collection_of_the_copy_deletes_no_file_that_is_needed(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    copy = retrodb.open(tmp_path / "copy")
    add(database, tmp_path, "new")

    def meanwhile() -> None:
        before = set(contents(tmp_path / "copy"))
        collect(copy.path)
        assert before - set(contents(tmp_path / "copy"))

    run_copy(Context(LocalStorage(database.path)), ActingStorage(tmp_path / "copy", meanwhile, 5), transfers=1)
    assert copy.check(read_data=True).damaged == ()
    assert named(copy.path) == named(database.path)


def test_files_of_a_copy_that_nobody_continues_are_collected(database: Database, tmp_path: Path) -> None:
    database.copy_to(tmp_path / "copy")
    copy, before = retrodb.open(tmp_path / "copy"), set(contents(tmp_path / "copy"))
    add(database, tmp_path, "new")

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_copy(Context(LocalStorage(database.path)), ActingStorage(tmp_path / "copy", die, 5), transfers=1)
    assert set(contents(tmp_path / "copy")) - before
    collect(copy.path)
    assert set(contents(tmp_path / "copy")) - before <= {"collection.json", "locks/gc.lock"}


class ReadOnlyStorage(LocalStorage):
    """A source where nothing can be written."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        raise RetroDBError("read-only", where=path)

    write = delete = write_pieces = stage = put_if_absent  # type: ignore[assignment]


def test_a_source_that_cannot_be_written_is_copied_too(database: Database, tmp_path: Path) -> None:
    run_copy(Context(ReadOnlyStorage(database.path)), LocalStorage(tmp_path / "copy"))
    assert named(tmp_path / "copy") == named(database.path)
