"""Check lists all damage, of every kind of file, and never raises for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import retrodb
from retrodb.corpus.train import train_byte_bpe
from retrodb.database import Database
from retrodb.engine.progress import Progress
from retrodb.errors import DamagedFileError
from retrodb.maintain.check import run_check
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
    result = run_check(view, Progress(), read_data=read_data)
    assert all(each.remedy for each in result.damaged)
    return {each.path: each.what for each in result.damaged}


def test_a_bit_in_any_live_file_is_found_by_reading_and_only_then(db: Database) -> None:
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


def test_missing_and_short_files_are_found_without_reading(db: Database) -> None:
    view = db.view()
    first, second = (record.path for record in view.manifest.files("chunks") + view.manifest.files("vectors"))
    (Path(db.path) / first).unlink()
    with (Path(db.path) / second).open("ab") as file:
        file.write(b"more")
    found = damaged(view, read_data=False)
    assert found.keys() == {first, second}
    assert "missing" in found[first]
    assert "bytes instead of" in found[second]


def test_damaged_snapshots_and_segments_do_not_hide_the_rest(db: Database) -> None:
    view = db.view()
    root = Path(db.path)
    [segment] = view.snapshot.segments
    flip(root / "snapshots" / f"{1:020d}.json")
    flip(root / "manifests" / f"{segment.digest}.parquet")
    found = damaged(view, read_data=False)
    assert found.keys() == {f"snapshots/{1:020d}.json", f"manifests/{segment.digest}.parquet"}


def test_files_of_an_older_snapshot_are_checked_as_of_it(db: Database) -> None:
    vectors = db.view().manifest.files("vectors")[0].path
    (Path(db.path) / vectors).unlink()
    assert {each.path for each in db.check().damaged} == {vectors}
    assert db.check(as_of=1).damaged == ()


def test_behind_a_damaged_head_older_versions_still_open(db: Database) -> None:
    head = db.snapshots()[-1].snapshot
    flip(Path(db.path) / "snapshots" / f"{head:020d}.json")
    again = retrodb.open(db.path)
    with pytest.raises(DamagedFileError, match="--as-of"):
        again.stats()
    assert again.stats(as_of=head - 1).documents == db.stats(as_of=head - 1).documents
    assert [each.path for each in again.check(as_of=head - 1).damaged] == [f"snapshots/{head:020d}.json"]
