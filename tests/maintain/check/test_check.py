"""Check lists all damage of every kind of file, and raises no error for it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_up import change

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.engine.local import LocalEngine
from retrodb.errors import DamagedFileError, UsageError
from retrodb.format.arrays import save_array
from retrodb.format.records import OP_DROP_FILE, CoveredRecord, DropRecord
from retrodb.maintain.check import read_task
from retrodb.maintain.check.command import run_check
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.publish import publish
from retrodb.store.snapshots import record_head
from retrodb.view.view import View


@pytest.fixture
def db(tmp_path: Path) -> Database:
    records = [{"id": str(n), "text": f"Sentence {n} is not much like the others. " * 3} for n in range(9)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    train_byte_bpe(record["text"] for record in records).save(tmp_path / "tokenizer.json")
    db = retrodb.create(
        tmp_path / "db", tokenizer=str(tmp_path / "tokenizer.json"), chunk_tokens=16, encoder="hashing:8"
    )
    db.ingest([tmp_path / "in.jsonl"], source="s", holdout=0.3)
    db.embed()
    return db


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damaged(view: View, *, read_data: bool) -> dict[str, str]:
    """Path -> fault, each with a remedy."""
    result = run_check(Context(view.storage), view, read_data=read_data)
    assert all(each.remedy for each in result.damaged)
    return {each.path: each.fault for each in result.damaged}


def test_a_flipped_bit_is_found_only_by_reading_data(db: Database) -> None:
    view = db.view()
    paths = [record.path for record in view.manifest.all_files()]
    assert {path.partition("/")[0] for path in paths} >= {"retrodb.toml", "documents", "chunks", "tokens", "vectors"}
    assert damaged(view, read_data=True) == {}
    for path in paths:
        flip(Path(db.path) / path)
    assert damaged(view, read_data=False) == {}
    found = damaged(view, read_data=True)
    assert list(found) == paths
    assert all("checksum mismatch" in what for what in found.values())


def test_missing_and_short_files_are_found_without_reading_data(db: Database) -> None:
    view = db.view()
    first, second = (record.path for record in view.manifest.files("chunks") + view.manifest.files("vectors"))
    (Path(db.path) / first).unlink()
    with (Path(db.path) / second).open("ab") as file:
        file.write(b"more")
    found = damaged(view, read_data=False)
    assert found.keys() == {first, second}
    assert "missing" in found[first]
    assert "bytes instead of" in found[second]


def test_damaged_snapshots_and_segments_do_not_hide_other_damage(db: Database) -> None:
    view = db.view()
    root = Path(db.path)
    [segment] = view.snapshot.segments
    flip(root / "snapshots" / f"{1:020d}.json")
    flip(root / "manifests" / f"{segment.digest}.parquet")
    found = damaged(view, read_data=False)
    assert found.keys() == {f"snapshots/{1:020d}.json", f"manifests/{segment.digest}.parquet"}


def test_an_older_snapshot_can_be_checked(db: Database) -> None:
    vectors = db.view().manifest.files("vectors")[0].path
    (Path(db.path) / vectors).unlink()
    assert {each.path for each in db.check().damaged} == {vectors}
    assert db.check(as_of=1).damaged == ()


def test_older_snapshots_open_when_the_newest_is_damaged(db: Database) -> None:
    head = db.snapshots()[-1].snapshot
    flip(Path(db.path) / "snapshots" / f"{head:020d}.json")
    again = retrodb.open(db.path)
    with pytest.raises(DamagedFileError, match="--as-of"):
        again.stats()
    assert again.stats(as_of=head - 1).num_documents == db.stats(as_of=head - 1).num_documents
    assert [each.path for each in again.check(as_of=head - 1).damaged] == [f"snapshots/{head:020d}.json"]


def test_partial_checks_read_all_files_in_turn(db: Database) -> None:
    whole = db.check(read_data=True)
    assert whole.read_bytes == whole.size_bytes
    total = sum(db.check(read_data=True, subset=0.2).read_bytes for _ in range(5))
    assert total >= whole.size_bytes
    paths = [record.path for record in db.view().manifest.files("vectors")]
    flip(Path(db.path) / paths[0])
    found = [db.check(read_data=True, subset=0.2) for _ in range(6)]
    assert {each.path for result in found for each in result.damaged} == {paths[0]}
    assert any(not result.damaged for result in found)


def test_a_check_that_ran_out_of_time_is_continued_by_the_next(db: Database) -> None:
    files = len(db.view().manifest.all_files())
    read = [db.check(read_data=True, max_duration_s=0).read_bytes for _ in range(files)]
    assert sum(read) == db.check().size_bytes
    assert db.check(read_data=True, max_duration_s=600).read_bytes == db.check().size_bytes
    (Path(db.path) / "check.json").write_bytes(b"torn")
    assert db.check(read_data=True, max_duration_s=0).read_bytes > 0


@pytest.mark.parametrize("limits", [{"subset": 0.5}, {"max_duration_s": 60.0}])
def test_limits_without_read_data_are_refused(limits: dict[str, float], db: Database) -> None:
    with pytest.raises(UsageError, match="read_data"):
        db.check(subset=limits.get("subset"), max_duration_s=limits.get("max_duration_s"))


def test_missing_snapshots_are_damage(db: Database) -> None:
    db.filter(doc_ids=["0"])  # so that one snapshot is left between the first and the newest
    root, head = Path(db.path), db.snapshots()[-1].snapshot
    (root / "snapshots" / f"{1:020d}.json").unlink()
    [gone] = db.check().damaged
    assert gone.path == f"snapshots/{1:020d}.json"
    (root / "snapshots" / f"{head:020d}.json").unlink()
    assert {damage.path for damage in retrodb.open(root).check().damaged} == {gone.path, f"snapshots/{head:020d}.json"}


def test_every_lost_snapshot_is_found_whatever_its_commit_wrote(db: Database) -> None:
    db.pin(name="run")  # a commit without files
    db.filter(doc_ids=["0"])
    db.unpin("run")
    db.gc(keep_snapshots=1, grace=timedelta(0))  # the others are stubs
    root = Path(db.path)
    paths = sorted((root / "snapshots").glob("*.json"))
    assert db.check().damaged == ()
    for path in paths:
        content = path.read_bytes()
        path.unlink()
        assert f"snapshots/{path.name}" in {damage.path for damage in retrodb.open(root).check().damaged}
        path.write_bytes(content)
    assert retrodb.open(root).check(read_data=True).damaged == ()


def test_a_commit_that_was_interrupted_before_its_snapshot_is_no_damage(db: Database) -> None:
    storage, head = db._context.storage, db.view().snapshot
    db.filter(doc_ids=["0"])
    newest = db.view().snapshot
    storage.delete(newest.path)  # as if the process had been killed between the manifest segment and the snapshot
    for path in storage.list("heads"):
        storage.delete(path)
    record_head(storage, head)
    assert retrodb.open(db.path).check(read_data=True).damaged == ()


def test_foreign_files_are_listed_and_no_damage(db: Database) -> None:
    foreign = ("chunks/thesis.pdf", "runs/notes.txt", "mine/data.parquet", "notes.md")
    for path in foreign:
        db._context.storage.write(path, b"mine")
    db.gc(grace=timedelta(0), keep_snapshots=1)
    result = db.check(read_data=True)
    assert (result.damaged, result.foreign) == ((), tuple(sorted(foreign)))
    assert all(db._context.storage.read(path) == b"mine" for path in foreign)


def test_snapshots_that_expired_after_a_restored_one_are_no_damage(db: Database) -> None:
    head = db.snapshots()[-1].snapshot
    db.pin(head, name="run")
    for _ in range(2):
        db.filter(where="true", reason="all")
        db.undelete(reason="all")
    db.gc(keep_snapshots=1, grace=timedelta(0))
    db.restore(head)
    assert db.view().snapshot.segments == db.view(head).snapshot.segments
    assert db.check(read_data=True).damaged == ()


def test_a_snapshot_in_the_place_of_another_is_damage(db: Database) -> None:
    root = Path(db.path) / "snapshots"
    (root / f"{1:020d}.json").write_bytes((root / f"{0:020d}.json").read_bytes())
    [damage] = db.check().damaged
    assert (damage.path, damage.fault) == (f"snapshots/{1:020d}.json", "holds snapshot 0")


def test_files_that_contradict_each_other_are_found_although_every_digest_is_right(db: Database) -> None:
    """As a bug of the program would leave them: files and manifest agree, but the contents are wrong."""
    view = db.view()
    record = view.manifest.files("tokens")[0]
    tokens = np.array(np.load(Path(db.path) / record.path))
    tokens[0, 0] += 1
    file = publish(
        view.storage, "tokens", "tokens/other.npy", partial(save_array, array=tokens), rows=view.files.rows(record)
    )
    wrong = [replace(file, first_chunk=0), replace(view.manifest.files("vectors")[0], path="vectors/x", num_rows=7)]
    change = Change(
        transaction="x", command="x", arguments={}, clock="2026-01-01T00:00:00+00:00", conflict_keys=conflict_keys.filtering(),
        files=wrong, drops=[DropRecord(OP_DROP_FILE, record.path)],
    )  # fmt: skip
    commit(view.storage, view.snapshot, change)
    found = {each.path: each.fault for each in db.check(read_data=True).damaged}
    assert found["tokens/other.npy"] == "its tokens are not those of its chunks"
    assert found.keys() == {"tokens/other.npy", "vectors/x"}


def test_tasks_in_processes_find_what_one_process_finds_in_its_order(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = db.view()
    for number, record in enumerate(view.manifest.all_files()):
        if number % 3 == 0:
            flip(Path(db.path) / record.path)
    context = Context(view.storage)
    files = view.storage.list("")
    expected = run_check(context, view, read_data=True)
    assert len(expected.damaged) > 3
    monkeypatch.setattr(read_task, "_MIN_FILE_BYTES", read_task._TASK_BYTES // 2)
    assert run_check(context, view, read_data=True) == expected
    assert run_check(replace(context, engine=LocalEngine(2)), view, read_data=True) == expected
    assert view.storage.list("") == files, "a check leaves nothing in the database"


def test_parts_of_a_check_read_every_file_once_in_turn(db: Database) -> None:
    view, read = db.view(), list[str]()
    context, records = Context(view.storage), view.manifest.all_files()
    sizes = {record.path: record.digest.size_bytes for record in records}
    compare = read_task.compare_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            read_task, "compare_bytes", lambda storage, record: read.append(record.path) or compare(storage, record)
        )
        while len(read) < len(records):
            before = len(read)
            result = run_check(context, view, read_data=True, subset=0.25)
            assert result.read_bytes == sum(sizes[path] for path in read[before:]) >= 0.25 * sum(sizes.values())
        run_check(context, view, read_data=True, max_duration_s=0)
    assert set(read[: len(records)]) == set(sizes)
    assert read[-1] == read[len(read) - 1 - len(records)], "the next file of the round"


@pytest.mark.parametrize("name", ["live", "vectors of default"])
def test_counts_that_are_not_those_of_the_files_are_found_by_reading_data(db: Database, name: str) -> None:
    view = db.view()
    first = int(view.shards.first_chunk[0])
    live = view.manifest.live_counts(first)
    wrong = {
        "live": replace(live, num_chunks=live.num_chunks + 1),
        "vectors of default": CoveredRecord("vectors", "default", first, 1),
    }
    commit(view.storage, view.snapshot, change("wrong counts", shard_counts=[wrong[name]]))
    view = db.view()
    assert not damaged(view, read_data=False)
    faults = damaged(view, read_data=True)
    assert faults == {"manifests": f"the shard at {first} has other counts ('{name}') than the manifest says"}
