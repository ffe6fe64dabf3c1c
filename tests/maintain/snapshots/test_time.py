"""Older snapshots can be read, pinned, compared, restored, and deleted by a collection."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from faulty_storage import Crash, FaultyStorage
from made_documents import made_text, write_documents
from reading import live_texts

from retrodb.database import Database
from retrodb.errors import MissingFileError, UsageError
from retrodb.format.entries import PinEntry, SpaceEntry
from retrodb.store.storage import LocalStorage

Make = Callable[..., Database]


def grown(make: Make, tmp_path: Path) -> Database:
    """Snapshots 1 (a, b), 2 (c of another source), 3 (a changed), 4 (embedded)."""
    database = make({"a": made_text(1, 150), "b": made_text(2, 150)})
    database.ingest([write_documents(tmp_path / "c.jsonl", {"c": made_text(3, 150)})], source="other")
    database.ingest([write_documents(tmp_path / "a.jsonl", {"a": made_text(4, 150)})], source="made")
    database.embed()
    return database


def test_restore_commits_the_older_state_as_a_new_snapshot(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    database.pin(3, name="run")
    before, given = live_texts(database, 2), database.view().snapshot.next_chunk
    assert database.restore(2, dry_run=True).num_dropped_files > 0
    result = database.restore(2)
    assert result.snapshot == 6
    assert live_texts(database) == before == {"a": made_text(1, 150), "b": made_text(2, 150), "c": made_text(3, 150)}
    snapshot = database.view().snapshot
    assert (snapshot.next_chunk, snapshot.names(PinEntry), snapshot.names(SpaceEntry)) == (given, ["run"], [])
    assert database.restore(2).snapshot == 6, "nothing to do the second time"
    assert database.ingest([tmp_path / "a.jsonl"], source="made").num_superseded == 1
    assert database.view().shards.first_chunk[-1] == given, "ids are never given twice"
    assert database.check(read_data=True).damaged == ()
    assert database.restore(4).snapshot == 8
    assert database.embed().num_chunks == 0


def test_an_expired_snapshot_cannot_be_restored(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    database.gc(keep_snapshots=1)
    with pytest.raises(UsageError, match="snapshot 2 expired"):
        database.restore(2)
    with pytest.raises(UsageError, match="no snapshot 99"):
        database.restore(99)


def test_restore_names_a_missing_file(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    database.ingest([write_documents(tmp_path / "m.jsonl", {"b": made_text(2, 150)})], source="made", mirror=True)
    database.compact(min_deleted=0)
    gone = set(database.view(3).manifest.paths()) - set(database.view().manifest.paths())
    path = min(path for path in gone if path.startswith("chunks/"))
    (Path(database.path) / path).unlink()
    with pytest.raises(MissingFileError, match="snapshot 3 cannot be restored") as raised:
        database.restore(3)
    assert path in str(raised.value)


def test_pins_are_set_moved_and_removed(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    assert database.pin(1, name="run").snapshot == 5
    assert database.pin(1, name="run").snapshot == 5
    with pytest.raises(UsageError, match="'run' is the name of snapshot 1"):
        database.pin(2, name="run")
    moved = database.pin(2, name="run", move=True)
    assert (moved.previous_snapshot, database.pin(name="now").pinned_snapshot) == (1, 6)
    pins = {each.snapshot: each.pins for each in database.snapshots() if each.pins}
    assert pins == {2: ("run",), 6: ("now",)}
    assert database.gc(keep_snapshots=1).expired_snapshots == (0, 1, 3, 4, 5)
    assert database.unpin("run").previous_snapshot == 2
    for name in ("", "a/b", " x", "12", "-x", "a b", "ü", "x" * 101):
        with pytest.raises(UsageError, match="invalid name of a pin"):
            database.pin(2, name=name)
    with pytest.raises(UsageError, match=r"no pin 'nobody'.*now"):
        database.unpin("nobody")
    with pytest.raises(UsageError, match="expired"):
        database.pin(1, name="late")


def test_diff_counts_changes_by_source_and_reason(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    a, b = database.view(1), database.view(3)
    rows = {(r.source, r.change, r.reason): (r.num_documents, r.num_chunks) for r in database.diff(1, 3).rows}
    lengths = {d["doc_id"]: d["num_chunks"] for d in b.chunks.documents(np.arange(b.chunks.end)) if d}
    assert "a" in {d["doc_id"] for d in a.chunks.documents(np.arange(a.chunks.end)) if d}
    assert rows == {
        ("made", "changed", "new version"): (1, lengths["a"]),
        ("other", "added", "new"): (1, lengths["c"]),
    }
    listed = database.diff(1, 3, documents=True).documents
    assert [(d.source, d.doc_id, d.change) for d in listed] == [
        ("made", "a", "changed"), ("other", "c", "added"),
    ]  # fmt: skip
    assert database.diff(3, 3).rows == ()
    with pytest.raises(UsageError, match="diff DB 1 3"):
        database.diff(3, 1)


def test_diff_finds_reasons_before_a_compaction_and_restored_documents(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    database.filter(doc_ids=["b"], reason="toxic")
    filtered = database.view().snapshot.number
    database.filter(doc_ids=["b"], reason="dull")
    database.undelete("toxic")
    database.undelete("dull")
    rows = [(r.change, r.reason, r.num_documents) for r in database.diff(filtered, filtered + 3).rows]
    assert rows == [("added", "back", 1)]
    database.filter(doc_ids=["b"], reason="toxic")
    database.compact(min_deleted=0)
    head = database.view().snapshot.number
    rows = [(r.change, r.reason, r.num_documents) for r in database.diff(1, head).rows if r.change != "added"]
    assert rows == [("changed", "new version", 1), ("removed", "toxic", 1)]


def test_an_undeleted_document_can_be_ingested_again_after_compaction(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    database.filter(doc_ids=["b"], reason="toxic")
    database.compact(min_deleted=0)
    again = write_documents(tmp_path / "b.jsonl", {"b": made_text(2, 150)})
    assert database.ingest([again], source="made").num_unchanged == 1
    result = database.undelete("toxic")
    assert (result.num_documents, result.num_compacted_documents) == (0, 1)
    assert database.ingest([again], source="made").num_added == 1, "a file that was read before"
    assert database.ingest([again], source="made").num_skipped_inputs == 1


def test_a_compacted_document_can_be_ingested_again_under_a_milder_rule(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    exam = write_documents(tmp_path / "exam.jsonl", {"x": made_text(2, 150)})
    assert database.dedup([exam], rule="containment>=0.5")[0].num_removed_documents == 1
    database.compact(min_deleted=0)
    again = write_documents(tmp_path / "b.jsonl", {"b": made_text(2, 150)})
    assert database.ingest([again], source="made").num_unchanged == 1
    other = write_documents(tmp_path / "exam.jsonl", {"x": made_text(77, 150)})
    database.dedup([other], rule="containment>=0.5")
    assert database.ingest([again], source="made").num_added == 1


def test_gc_lists_open_runs_and_deletes_abandoned_ones(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"a": made_text(1, 150)})
    counting = FaultyStorage(LocalStorage(tmp_path / "db"))
    file = write_documents(tmp_path / "b.jsonl", {"b": made_text(2, 150)})
    with pytest.raises(Crash):
        Database(FaultyStorage(counting, 30, "crash")).ingest([file], source="made")
    [run] = database.gc(dry_run=True).open_runs
    assert (run.command, run.is_abandoned) == ("ingest", False)
    assert run.num_files > 0
    later = Database(tmp_path / "db", clock="2031-01-01T00:00:00.000000+00:00")
    assert later.gc(abandon_runs=timedelta(days=30)).open_runs[0].is_abandoned
    much_later = Database(tmp_path / "db", clock="2031-02-01T00:00:00.000000+00:00")
    assert much_later.gc(abandon_runs=timedelta(days=30)).num_deleted_files >= run.num_files
    assert much_later.gc().open_runs == ()
    assert not [
        folder for folder in (tmp_path / "db" / "runs").rglob("*") if folder.is_dir() and not any(folder.iterdir())
    ]
    assert database.ingest([file], source="made").num_added == 1


def test_gc_deletes_nothing_within_the_grace_period(make_database: Make, tmp_path: Path) -> None:
    database = grown(make_database, tmp_path)
    database.compact(min_deleted=0)
    newest = datetime.fromisoformat(database.view().snapshot.clock)  # a mark is never older than the newest commit
    days = [(newest + timedelta(days=day)).isoformat(timespec="microseconds") for day in range(10)]
    dry = Database(tmp_path / "db", clock=days[1]).gc(keep_snapshots=1, dry_run=True)
    first = Database(tmp_path / "db", clock=days[1]).gc(keep_snapshots=1)
    assert (first.num_deleted_files, len(first.expired_snapshots), first.num_marked_files) == (
        0,
        5,
        dry.num_marked_files,
    )
    assert Database(tmp_path / "db", clock=days[7]).gc(keep_snapshots=1).num_deleted_files == 0
    last = Database(tmp_path / "db", clock=days[9]).gc(keep_snapshots=1)
    assert (last.num_deleted_files, last.deleted_bytes, last.num_marked_files) == (
        first.num_marked_files,
        first.marked_bytes,
        0,
    )
    assert database.check(read_data=True).damaged == ()
    with pytest.raises(UsageError, match="below zero"):
        database.gc(grace=timedelta(days=-1))
