"""A repair rebuilds or recomputes damaged files, names lost documents, and deletes nothing. Answers stay the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from faulty_storage import Crash, FaultyStorage, faults_of

import retrodb
from retrodb.database import Database
from retrodb.errors import RetroDBError
from retrodb.store.storage import LocalStorage
from retrodb.view.naming import naming_path
from retrodb.view.where import documents_where
from retrodb_cli.render_screen import database_repair_result

from .asked import answers
from .test_matrix import flip

REPAIRABLE = (
    "tokens",
    "hashes",
    "ids",
    "vectors",
    "parts",
    "codebooks",
    "neighbours",
    "naming",
    "joined",
    "bands",
    "duplicates",
    "inputs",
)


def harm(root: Path, kind: str, place: int = 0) -> str:
    path = retrodb.open(root).view().manifest.files(kind)[place].path
    flip(root / path, random.Random(0), [])
    return path


def live(database: Database) -> set[str]:
    view = database.view()
    documents = view.chunks.documents(documents_where(view, "true"))
    return {f"{each['source']}/{each['doc_id']}" for each in documents if each}


@pytest.mark.parametrize("kind", REPAIRABLE)
def test_derived_files_are_rebuilt_or_recomputed(kind: str, copy: Callable[[], Path], truth: dict[str, Any]) -> None:
    root = copy()
    before = (root / harm(root, kind)).read_bytes()
    database = retrodb.open(root)
    plan = database.repair(dry_run=True).plan
    assert len([*plan.rebuilt, *plan.recomputed]) == 1
    assert (plan.lost, plan.unrepairable) == ((), ())
    assert not (root / "quarantine").exists()
    result = database.repair()
    assert result.is_whole
    assert database.check(read_data=True).damaged == ()
    assert [path.read_bytes() for path in (root / "quarantine").rglob("*") if path.is_file()] == [before]
    found = answers(retrodb.open(root))
    # A recomputed table has no neighbours in documents that were filtered after the old one was computed.
    known = found.keys() - ({"self"} if kind in ("neighbours", "joined") else set())
    assert {name: found[name] for name in known} == {name: truth[name] for name in known}
    again = database.repair()
    assert (again.plan.rebuilt, again.plan.recomputed, again.commands_run) == ((), (), ())


@pytest.mark.parametrize("kind", ["neighbours", "joined"])
def test_a_damaged_table_is_recomputed_although_its_inputs_are_the_same(kind: str, copy: Callable[[], Path]) -> None:
    root = copy()
    database = retrodb.open(root)
    database.neighbours(table="new")
    [path] = [record.path for record in database.view().manifest.files(kind, "new")][:1]
    flip(root / path, random.Random(0), [])
    assert retrodb.open(root).repair().plan.recomputed == (path,)
    assert retrodb.open(root).check(read_data=True).damaged == ()


def test_a_table_and_the_file_that_is_rebuilt_from_it_are_both_recomputed(copy: Callable[[], Path]) -> None:
    root = copy()
    paths = {harm(root, "neighbours"), harm(root, "naming")}
    database = retrodb.open(root)
    [of_table] = [path for path in paths if path.startswith("neighbours/")]
    assert naming_path(of_table) in paths
    result = database.repair()
    assert (set(result.plan.recomputed), result.plan.rebuilt, result.is_whole) == (paths, (), True)
    assert database.check(read_data=True).damaged == ()


@pytest.mark.parametrize("kind", ["tokens", "hashes", "ids", "naming"])
def test_missing_files_are_rebuilt_in_all_snapshots(kind: str, copy: Callable[[], Path]) -> None:
    root = copy()
    database = retrodb.open(root)
    head = database.view().snapshot.number
    for record in database.view().manifest.files(kind):
        (root / record.path).unlink()
    assert len(database.repair().plan.rebuilt) > 1
    assert database.view().snapshot.number == head
    assert all(database.check(read_data=True, as_of=number).damaged == () for number in range(1, head + 1))


@pytest.mark.parametrize("kind", ["documents", "chunks"])
def test_lost_documents_are_named_and_kept_until_the_loss_is_accepted(kind: str, copy: Callable[[], Path]) -> None:
    root = copy()
    database = retrodb.open(root)
    everything, head = live(database), database.view().snapshot.number
    path = harm(root, kind, 1)
    refused = database.repair()
    assert not refused.is_whole
    assert path in refused.plan.lost
    assert (database.view().snapshot.number, (root / path).exists()) == (head, True)
    named = set(refused.plan.lost_documents)
    result = database.repair(accept_loss=True)
    assert result.is_whole
    assert database.check(read_data=True).damaged == ()
    rest = live(database)
    assert len(everything - rest) == 2
    assert named == (everything - rest if kind == "chunks" else set())
    assert refused.plan.num_unnamed_lost_documents == (0 if kind == "chunks" else 6)
    assert result.commands_to_run == ("ingest --source second",)
    assert_lost(database, everything - rest)


def test_further_lost_documents_are_counted(copy: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy()
    database = retrodb.open(root)
    harm(root, "chunks", 1)
    names = database.repair().plan.lost_documents
    monkeypatch.setattr("retrodb.maintain.check.repair._MAX_NAMED", 1)
    plan = database.repair(dry_run=True).plan
    assert (plan.lost_documents, plan.num_more_lost_documents) == (names[:1], 1)
    assert "more lost documents: 1" in database_repair_result(database.repair(dry_run=True))


def assert_lost(database: Database, lost: set[str]) -> None:
    """All readers work, and none returns anything from these documents."""
    found = answers(database)
    # Exposure reads the snapshot of the table, which still names the lost files.
    assert {name for name, error in found.items() if isinstance(error, Exception)} <= {"exposure"}
    hits = database.search(["ban kaban lodor", "tufel pefel"], k=30)
    assert not {f"{hit.source}/{hit.doc_id}" for own in hits for hit in own} & lost
    table = database.neighbour_table()
    ids = table.read(table.rows())[0].ravel()
    assert database.view().chunks.is_live(ids[ids >= 0]).all()
    assert database.view().chunks.is_live(table.rows()).all()


def test_a_lost_source_can_be_ingested_again(copy: Callable[[], Path], whole: Path) -> None:
    root = copy()
    database = retrodb.open(root)
    everything = live(database)
    harm(root, "chunks", 1)
    database.repair(accept_loss=True)
    result = database.ingest([whole.parent / "second.jsonl"], source="second")
    assert result.num_added == 6
    assert live(database) >= everything - {"second/b1"}
    database.embed()
    database.index()
    assert database.check(read_data=True).damaged == ()
    assert {hit.source for hit in database.search(["kaban"], k=60)[0]} >= {"first", "second"}


@pytest.mark.parametrize("kind", ["tombstones", "testsets"])
def test_unrepairable_files_are_reported_with_a_remedy(kind: str, copy: Callable[[], Path]) -> None:
    root = copy()
    path = harm(root, kind)
    result = retrodb.open(root).repair(accept_loss=True)
    assert [each.path for each in result.plan.unrepairable] == [path]
    assert "backup" in result.plan.unrepairable[0].remedy
    assert not result.is_whole
    assert (root / path).exists()


@pytest.mark.parametrize(
    ("content", "way"),
    [("tokens", "rebuilt"), ("ids", "rebuilt"), ("vectors", "recomputed"), ("chunks", "unrepairable")],
)
def test_files_of_query_sets_are_repaired(
    content: str, way: str, copy: Callable[[], Path], truth: dict[str, Any]
) -> None:
    root = copy()
    database = retrodb.open(root)
    path = next(f.path for f in database.view().manifest.files("queries", "training") if f"/{content}." in f.path)
    flip(root / path, random.Random(0), [])
    result = retrodb.open(root).repair()
    assert len(getattr(result.plan, way)) == 1
    assert result.is_whole == (way != "unrepairable")
    if result.is_whole:
        assert answers(retrodb.open(root)) == truth


def test_an_interrupted_repair_is_repeated(
    copy: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, truth: dict[str, Any]
) -> None:
    root = copy()
    database = retrodb.open(root)
    harm(root, "vectors")
    harm(root, "tokens")

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retrodb.maintain.check.recompute.run_embed", fail)
        with pytest.raises(KeyboardInterrupt):
            database.repair()
    assert database.check(read_data=True).damaged == ()
    database.embed()
    assert answers(database) == truth


def test_a_repair_that_failed_is_completed_by_the_next(copy: Callable[[], Path], truth: dict[str, Any]) -> None:
    """An operation fails, or the process dies. The damaged bytes are kept, and answers are right or refused."""
    root = copy()
    paths = [harm(root, kind) for kind in ("tokens", "ids", "neighbours")]
    kept = {path: (root / path).read_bytes() for path in paths}
    counting = FaultyStorage(LocalStorage(copied(root)))
    retrodb.open(counting).repair()
    repaired = answers(retrodb.open(LocalStorage(counting.url)))
    for at in random.Random(0).sample(range(len(counting.operations)), 6):
        for fault in random.Random(at).sample(faults_of(counting.operations[at][0]), 1):
            storage = LocalStorage(copied(root))
            with suppress(RetroDBError, Crash):
                retrodb.open(FaultyStorage(storage, at, fault)).repair()
            for name, answer in answers(retrodb.open(storage)).items():
                assert isinstance(answer, RetroDBError) or answer in (truth[name], repaired[name]), (name, at, fault)
            database = retrodb.open(storage)
            database.repair()
            assert database.check(read_data=True).damaged == ()
            assert {path: (storage.root / "quarantine" / path).read_bytes() for path in paths} == kept


def copied(root: Path) -> Path:
    """A copy of a folder next to it."""
    target = root.parent / "faulty"
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(root, target))
