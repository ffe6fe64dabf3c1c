"""A database travels from a directory to an object store, to another one, and back, with equal bytes and answers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from faulty_storage import SURVIVED
from made_documents import write_documents
from object_server import ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, ObjectServer, RandomFaults

import retrodb
from retrodb.database import Database
from retrodb.errors import DamagedFileError, RetroDBError
from retrodb.store.collection import named_by
from retrodb.store.open_storage import open_storage
from retrodb.store.snapshots import read_head

from .shell import User
from .test_object_store import CLOCK, DOCUMENTS, Inputs, _found, _table


@pytest.fixture
def inputs(tmp_path: Path, made_tokenizer: Path) -> Inputs:
    made = Inputs(tmp_path, made_tokenizer)
    made.write()
    return made


@pytest.fixture
def database(inputs: Inputs) -> Database:
    """Every stage."""
    db = retrodb.create(inputs.folder / "local", tokenizer=str(inputs.tokenizer), encoder="hashing:32", clock=CLOCK)
    db.ingest([inputs.folder / "docs.jsonl"], source="made", holdout=0.1)
    db.dedup(against=[inputs.folder / "items.jsonl"])
    db.embed()
    db.index()
    db.neighbours(k=2)
    return db


def snapshot_files(url: str) -> dict[str, bytes]:
    """The newest snapshot, and the files that it needs."""
    storage = open_storage(url)
    head = read_head(storage)
    return {path: storage.read(path) for path in [head.path, *named_by(storage, head)]}


def test_from_a_directory_through_two_stores_and_back(
    database: Database, store_url: str, object_server: ObjectServer, inputs: Inputs, tmp_path: Path
) -> None:
    second = f"s3://{object_server.new_bucket()}/nested/place"
    places = [database.path, store_url, second, str(tmp_path / "back")]
    for source, destination in pairwise(places):
        first = retrodb.open(source).copy_to(destination)
        assert first.num_files == len(snapshot_files(database.path)) - 1
        again = retrodb.open(source).copy_to(destination)
        assert (again.num_files, again.num_present_files) == (0, first.num_files)
    expected = snapshot_files(database.path)
    answers = _found(database), _table(database), database.stats().num_live_chunks
    for place in places[1:]:
        copy = retrodb.open(place)
        assert snapshot_files(place) == expected
        assert (_found(copy), _table(copy), copy.stats().num_live_chunks) == answers
        assert copy.check(read_data=True).damaged == ()
    database.ingest([inputs.folder / "later.jsonl"], source="made")
    for source, destination in pairwise(places):
        new = len(set(snapshot_files(source)) - set(expected)) - 1
        assert retrodb.open(source).copy_to(destination, since=5).num_files == new > 0
    assert snapshot_files(places[-1]) == snapshot_files(database.path)
    assert not [path for path in open_storage(store_url).list("") if path.startswith(("runs/", "tmp/"))]


def test_hundreds_of_faults_change_no_byte_of_a_copy(
    database: Database,
    store_url: str,
    object_server: ObjectServer,
    tmp_path: Path,
    record_property: pytest.RecordProperty,
) -> None:
    object_server.choose = faults = RandomFaults(0.25, seed=3)
    number = 0
    while faults.counts.total() < 100:
        database.copy_to(f"{store_url}-{number}")
        retrodb.open(f"{store_url}-{number}").copy_to(tmp_path / f"back-{number}")
        assert snapshot_files(str(tmp_path / f"back-{number}")) == snapshot_files(database.path)
        number += 1
    record_property(SURVIVED, faults.counts.total())


def test_a_damaged_object_is_refused_and_no_credential_is_shown(
    database: Database, store_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database.copy_to(store_url)
    storage = open_storage(store_url)
    [record] = database.view().manifest.files("vectors")
    data = storage.read(record.path)
    storage.write(record.path, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=rf"{store_url}/{record.path}: checksum mismatch") as raised:
        retrodb.open(store_url).copy_to(tmp_path / "back")
    assert database.copy_to(store_url, verify=True).num_replaced_files == 1
    assert retrodb.open(store_url).copy_to(tmp_path / "back").new_snapshots == (5,)
    shown = "".join([str(raised.value), *capfd.readouterr()])
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (SECRET_KEY, SESSION_TOKEN, ACCESS_KEY):
        assert secret not in shown
        assert not [data for data in files if secret.encode() in data]


def test_a_store_that_cannot_be_written_is_named(database: Database, object_server: ObjectServer) -> None:
    with pytest.raises(RetroDBError, match="no-such-bucket"):
        database.copy_to("s3://no-such-bucket/db")


def test_backup_release_and_restore_by_commands(
    database: Database, store_url: str, inputs: Inputs, tmp_path: Path
) -> None:
    user = User(tmp_path)
    user.types("retrodb pin local --name release-1")
    planned = user.types(f"retrodb copy local {store_url} --snapshot release-1 --dry-run --json").row
    copied = user.types(f"retrodb copy local {store_url} --snapshot release-1 --json").row
    assert planned == {**copied, "dry_run": True}
    assert (copied["message_type"], copied["pins"]) == ("copy_result", ["release-1"])
    row = user.types(f"retrodb stats {store_url} --as-of release-1 --json").out.splitlines()[0]
    assert json.loads(row)["num_documents"] > len(DOCUMENTS) // 2
    write_documents(tmp_path / "more.jsonl", {"more": "words " * 200})
    user.types("retrodb ingest local more.jsonl --source more")
    assert "new in" in user.types(f"retrodb copy local {store_url} --since release-1").out
    assert "copied 0 files" in user.types(f"retrodb copy local {store_url}").out
    user.types(f"retrodb copy {store_url} restored --snapshot release-1")
    assert user.types("retrodb check restored --read-data").out.endswith("no damage found\n")
    assert "one is in the other" in user.types("retrodb copy local local/backup", code=2).err
    assert "no pin 'release-2'" in user.types("retrodb copy local elsewhere --snapshot release-2", code=2).err
    assert not (tmp_path / "elsewhere").exists()
