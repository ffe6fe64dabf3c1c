"""A database in an object store is the same as one in a directory, whatever happens to requests."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_storage import SURVIVED
from made_documents import made_text, write_documents
from object_server import ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, ObjectServer, RandomFaults

import retrodb
from retrodb.database import Database
from retrodb.errors import InputError, UsageError
from retrodb.store import object_cache
from retrodb.store.object_storage import ObjectStorage
from retrodb.store.open_storage import open_storage

from .shell import User

CLOCK = "2026-01-01T00:00:00.000000+00:00"
DOCUMENTS = {f"d{number}": made_text(f"d{number}", 150) for number in range(40)}
LATER = {f"m{number}": made_text(f"m{number}", 120) for number in range(10)} | {"d5 again": DOCUMENTS["d5"]}
ITEMS = {f"t{number}": DOCUMENTS[f"d{number}"] for number in range(3)}


@dataclass(frozen=True)
class Inputs:
    """The files that databases are made of."""

    folder: Path
    tokenizer: Path

    def write(self) -> None:
        """Write the documents."""
        for name, documents in (("docs", DOCUMENTS), ("later", LATER), ("items", ITEMS)):
            write_documents(self.folder / f"{name}.jsonl", documents)


@pytest.fixture
def inputs(tmp_path: Path, made_tokenizer: Path) -> Inputs:
    made = Inputs(tmp_path, made_tokenizer)
    made.write()
    return made


def build(url: str, inputs: Inputs, out: Path, workers: int = 1) -> Iterator[tuple[str, object]]:
    """Every stage and most of the maintenance; yields what must be equal wherever the database is."""
    retrodb.create(url, tokenizer=str(inputs.tokenizer), encoder="hashing:32", clock=CLOCK)
    db = retrodb.open(url, workers=workers, clock=CLOCK)
    yield "ingest", db.ingest([inputs.folder / "docs.jsonl"], source="made", holdout=0.1)
    yield "dedup", db.dedup(against=[inputs.folder / "items.jsonl"])
    yield "embed", db.embed().num_chunks
    yield "index", db.index()
    yield "neighbours", db.neighbours(k=2)
    yield "filter", db.filter(doc_ids=["d20", "d21"], reason="bad")
    yield "ingest", db.ingest([inputs.folder / "later.jsonl"], source="made")
    yield "near-duplicates", db.near_duplicates()
    yield "embed", db.embed().num_chunks
    yield "index", db.index()
    yield "repair", db.repair_neighbours()
    yield "compact", db.compact(min_deleted=0.01)
    yield "search", _found(db)
    yield "table", _table(db)
    yield "sql", db.sql("select source, count(*), sum(num_chunks) from documents where live group by source").rows
    yield "export", db.export(out, to="arrays", is_registered=False).size_bytes
    yield "check", db.check(read_data=True)
    yield "gc", db.gc(keep_snapshots=2)


def purge(url: str, workers: int = 1) -> Iterator[tuple[str, object]]:
    """The end of the database's life. The number of files that a proof reads again depends on time."""
    db = retrodb.open(url, workers=workers, clock=CLOCK)
    purged = db.purge(doc_ids=["d30"])
    yield "purge", (purged.num_documents, purged.num_chunks, purged.expired_snapshots, purged.proof.num_traces)
    yield "proof", (purged.proof.remaining, purged.proof.num_files)
    yield "check", db.check(read_data=True)
    yield "search", _found(db)


def _found(db: Database) -> object:
    hits = db.search([DOCUMENTS["d10"][:200], LATER["m3"][100:300]], k=5)
    return [[(hit.chunk_id, hit.score, hit.doc_id, hit.text) for hit in each] for each in hits]


def _table(db: Database) -> object:
    table = db.neighbour_table()
    ids, scores = table.read_scores(table.rows())
    return ids.tolist(), scores.tolist()


def contents(url: str) -> dict[str, bytes]:
    """All files but locks, which object stores have none of."""
    storage = open_storage(url)
    return {path: storage.read(path) for path in storage.list("") if not path.startswith("locks/")}


def exported(out: Path) -> dict[str, bytes]:
    """The files of an export but those that name its path."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("retrodb")}


def compare(local: str, url: str, inputs: Inputs, workers: int = 1) -> None:
    """Build both databases and compare answers and bytes."""
    outs = [inputs.folder / "out-local", inputs.folder / "out-store"]
    for ours, theirs in zip(build(local, inputs, outs[0]), build(url, inputs, outs[1], workers), strict=True):
        assert ours == theirs
    assert contents(local) == contents(url)
    assert exported(outs[0]) == exported(outs[1]) != {}
    for ours, theirs in zip(purge(local), purge(url, workers), strict=True):
        assert ours == theirs


def test_database_in_a_store_has_the_same_answers_and_bytes_as_one_in_a_directory(
    inputs: Inputs, store_url: str, tmp_path: Path
) -> None:
    compare(str(tmp_path / "local"), store_url, inputs)


def test_hundreds_of_faults_and_a_tiny_cache_change_no_answer_and_no_byte(
    inputs: Inputs,
    store_url: str,
    object_server: ObjectServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: pytest.RecordProperty,
) -> None:
    monkeypatch.setenv(object_cache.SIZE_VARIABLE, "200KiB")
    monkeypatch.setattr(object_cache, "_IN_USE_S", 0.0)
    object_server.choose = faults = RandomFaults(0.1, seed=1)
    compare(str(tmp_path / "local"), store_url, inputs)
    assert faults.counts.total() >= 200
    assert len(faults.counts) == 8, faults.counts
    record_property(SURVIVED, faults.counts.total())


@pytest.mark.soak
def test_a_thousand_faults_lose_nothing_and_double_nothing_in_two_processes(
    inputs: Inputs,
    store_url: str,
    object_server: ObjectServer,
    tmp_path: Path,
    record_property: pytest.RecordProperty,
) -> None:
    object_server.choose = faults = RandomFaults(0.15, seed=2)
    number = 0
    while faults.counts.total() < 1000:
        compare(str(tmp_path / f"local-{number}"), f"{store_url}-{number}", inputs, workers=2)
        for folder in (tmp_path / "out-local", tmp_path / "out-store"):
            shutil.rmtree(folder)
        number += 1
    record_property(SURVIVED, faults.counts.total())


def test_purge_leaves_no_copy_on_this_machine_and_tells_of_old_versions(
    inputs: Inputs, store_url: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    bucket = store_url.split("/")[2]
    object_server.keep_versions(bucket)
    retrodb.create(store_url, tokenizer=str(inputs.tokenizer), encoder="hashing:32")
    db = retrodb.open(store_url)
    db.ingest([inputs.folder / "docs.jsonl"], source="made")
    (tmp_path / "ids.txt").write_text("d7\n")
    printed = User(tmp_path).types(f"retrodb purge {store_url} --doc-ids ids.txt --yes")
    assert "0 traces left" in printed.out
    assert "The bucket keeps old versions of objects" in printed.out
    copies = [path for path in (tmp_path / "cache" / "objects").rglob("*") if path.is_file()]
    assert copies
    current = set(contents(store_url).values())
    assert [path for path in copies if path.read_bytes() not in current] == []


def test_no_credential_is_in_a_file_a_log_or_an_output(
    inputs: Inputs,
    store_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    for _ in build(store_url, inputs, tmp_path / "out"):
        continue
    written = [*contents(store_url).values()]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]  # inputs, export and cache
    written += [text.encode() for text in (caplog.text, *capfd.readouterr())]
    for secret in (SECRET_KEY, SESSION_TOKEN, ACCESS_KEY):
        assert not [data for data in written if secret.encode() in data]


def test_every_command_takes_the_url_of_a_database(
    inputs: Inputs, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User(tmp_path)
    user.types(f"retrodb init {store_url} --tokenizer {inputs.tokenizer} --encoder hashing:32")
    user.types(f"retrodb ingest {store_url} docs.jsonl --source made")
    assert "exists here already" in user.types(f"retrodb init {store_url} --tokenizer {inputs.tokenizer}", code=11).err
    monkeypatch.setenv("RETRODB_DB", store_url)
    user.types("retrodb embed")
    user.types("retrodb ingest later.jsonl --source made")
    user.types("retrodb ingest docs.jsonl --source other --dry-run")
    assert json.loads(user.types(f"retrodb stats {store_url} --json").out.splitlines()[0])["database"] == store_url
    assert user.types("retrodb stats").out
    assert user.types("retrodb check --read-data").out.endswith("no damage found\n")
    assert "not a retrodb database" in user.types(f"retrodb stats {store_url}-none", code=10).err


def test_inputs_in_a_store_make_the_same_database_as_local_ones(
    inputs: Inputs, store_url: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON Lines, plain and compressed, Parquet, text and a tar archive; an object, a folder, a pattern and a list."""
    folder = tmp_path / "corpus"
    write_inputs(folder, inputs)
    bucket = store_url.rpartition("/")[0]
    for path in folder.rglob("*"):
        if path.is_file():
            ObjectStorage(bucket).write(f"corpus/{path.relative_to(folder).as_posix()}", path.read_bytes())
    object_server.choose = RandomFaults(0.05, seed=6)
    given = {"one": "a.jsonl", "all": "", "some": "**/*.jsonl*"}
    rows = []
    for root, at in ((str(folder), tmp_path / "of-local"), (f"{bucket}/corpus", tmp_path / "of-store")):
        db = retrodb.create(at, tokenizer=str(inputs.tokenizer), encoder="hashing:32", clock=CLOCK)
        results = [db.ingest([f"{root}/{name}".rstrip("/")], source=source) for source, name in given.items()]
        db.ingest([], files_from=[_list(tmp_path, f"{root}/a.jsonl")], source="listed")
        rows.append(([(result.num_read, result.num_added) for result in results], _documents(db)))
    assert rows[0] == rows[1]
    assert rows[0][0][0] == (len(DOCUMENTS), len(DOCUMENTS))
    with pytest.raises(InputError, match="no such object, folder of objects or match"):
        retrodb.open(tmp_path / "of-store").ingest([f"{bucket}/corpus/*.csv"], source="none")
    monkeypatch.setenv("RETRODB_DB", str(tmp_path / "of-store"))
    assert "nothing new" not in User(tmp_path).types(f"retrodb ingest {bucket}/corpus/a.jsonl --source again").out


def test_test_sets_query_sets_and_exports_can_be_objects_and_reports_cannot(
    inputs: Inputs,
    store_url: str,
    tmp_path: Path,
    make_database: Callable[..., Database],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    db = make_database(DOCUMENTS)
    ObjectStorage(store_url).write("items.jsonl", (inputs.folder / "items.jsonl").read_bytes())
    [result] = db.dedup(against=[f"{store_url}/items.jsonl"])
    assert (result.testset, result.num_removed_documents) == ("items", len(ITEMS))
    assert db.add_queries("train", [f"{store_url}/items.jsonl"]).num_documents == len(ITEMS)
    with pytest.raises(InputError, match="no such object"):
        db.dedup(against=[f"{store_url}/none.jsonl"])
    db.embed()
    db.index()
    assert db.export_faiss(f"{store_url}/in/a.faiss").out == f"{store_url}/in/a.faiss"
    assert db.export_faiss(tmp_path / "a.faiss").size_bytes == ObjectStorage(store_url).stat("in/a.faiss").size_bytes
    assert ObjectStorage(store_url).read("in/a.faiss") == (tmp_path / "a.faiss").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        db.export_faiss(f"{store_url}/in/a.faiss")
    assert db.export_faiss(f"{store_url}/in/b.faiss", dry_run=True).size_bytes is None
    out = f"{store_url}/out.json"
    for write in (
        lambda: db.bench_recall(report=out),
        lambda: db.validate(report=out),
        lambda: retrodb.database.train_tokenizer([inputs.folder / "docs.jsonl"], out),
    ):
        with pytest.raises(UsageError, match="cannot be in an object store"):
            write()
    assert ObjectStorage(store_url).list("") == ["in/a.faiss", "items.jsonl"]
    assert not (tmp_path / "s3:").exists()


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Files of several formats."""
    (folder / "more").mkdir(parents=True)
    shutil.copy(inputs.folder / "docs.jsonl", folder / "a.jsonl")
    (folder / "more" / "b.jsonl.gz").write_bytes(gzip.compress((inputs.folder / "later.jsonl").read_bytes(), mtime=0))
    texts = [made_text(f"row {number}", 50) for number in range(20)]
    pq.write_table(pa.table({"id": [f"p{number}" for number in range(20)], "text": texts}), folder / "c.parquet")
    (folder / "d.txt").write_text(made_text("page", 80))
    with tarfile.open(folder / "e.tar", "w") as archive:
        archive.add(folder / "d.txt", "inside.txt")


def _list(folder: Path, path: str) -> Path:
    (folder / "files.txt").write_text(f"{path}\n")
    return folder / "files.txt"


def _documents(db: Database) -> object:
    return db.sql("select source, doc_id, num_chunks from documents where live order by all").rows


def test_pin_restore_diff_and_recipe_work_in_a_store(inputs: Inputs, store_url: str, tmp_path: Path) -> None:
    user = User(tmp_path)
    tokenizer = inputs.tokenizer
    user.types(f"retrodb build {store_url} docs.jsonl --tokenizer {tokenizer} --encoder hashing:32 --holdout 0 --yes")
    before = retrodb.open(store_url).stats().num_documents
    user.types(f"retrodb pin {store_url} --name first")
    user.types(f"retrodb ingest {store_url} later.jsonl --source more")
    user.types(f"retrodb update {store_url}")
    assert retrodb.open(store_url).stats().num_documents > before
    user.types(f"retrodb restore {store_url} {retrodb.open(store_url).snapshots()[1].snapshot} --dry-run")


def test_opening_and_reading_cost_few_requests_however_many_files_there_are(
    inputs: Inputs, store_url: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    retrodb.create(store_url, tokenizer=str(inputs.tokenizer), encoder="hashing:32")
    costs = []
    for number in range(6):
        write_documents(tmp_path / "more.jsonl", {f"{number}": made_text(number, 100)})
        retrodb.open(store_url).ingest([tmp_path / "more.jsonl"], source="made")
        object_server.requests.clear()
        opened = retrodb.open(store_url)
        num_open = len(object_server.requests)
        opened.stats()
        costs.append((num_open, len(object_server.requests) - num_open))
        assert not [request for request in object_server.requests if request.path.endswith("prefix=db%2F")]
    assert max(num_open for num_open, _ in costs) == 2
    assert costs[1] == costs[-1]
    assert costs[-1][1] <= 8
