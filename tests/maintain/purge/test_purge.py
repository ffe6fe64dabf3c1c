"""A purge leaves no trace of a document in any file, and its proof finds a copy in any file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from faulty_storage import Crash, FaultyStorage
from made_documents import made_text, write_documents

from retrodb.corpus.chunking import chunk_documents
from retrodb.database import Database, DocumentName
from retrodb.dedup.shingles import shingle_sets
from retrodb.dedup.union_find import CONTENT_DTYPE
from retrodb.engine.run import open_run
from retrodb.errors import ConflictError, UsageError
from retrodb.format import schemas
from retrodb.format.arrays import AnyArray, save_array
from retrodb.format.document_keys import content_hash
from retrodb.format.entries import PinEntry
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.format.snapshot import dump_snapshot
from retrodb.maintain.purge.proof import Proof, run_proof
from retrodb.maintain.purge.targets import find_targets
from retrodb.maintain.purge.traces import Traces, store_traces, string_values, traces_of
from retrodb.stages.dedup.near_verify import SHINGLE_DTYPE
from retrodb.stages.ingest import tokenize
from retrodb.store.storage import LocalStorage
from retrodb.view.view import SELF

Make = Callable[..., Database]

GONE, TEXT = "gone-1", made_text(5000, 150)


def built(make: Make, tmp_path: Path) -> Database:
    """A database of two shards with every stage run and a test set. The document to purge is in the first shard."""
    database = make({})
    for shard in range(2):
        documents = {f"{shard}-{n}": made_text(100 * shard + n, 60 + 70 * (n % 3)) for n in range(4)}
        more = {GONE: TEXT} if shard == 0 else {}
        database.ingest([write_documents(tmp_path / f"{shard}.jsonl", documents | more)], source="made")
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"x": made_text(9000, 60)})])
    database.embed()
    database.index()
    database.neighbours(k=2, spare_neighbours=1, exact=True)
    database.near_duplicates()
    return database


def search(database: Database, traces: Traces, *, read_all: bool = False) -> Proof:
    """Search all files for traces, in a run of these traces."""
    run = open_run(database._context.storage, "purge", {"traces": traces.id})
    store_traces(run.storage, run.id, traces)
    return run_proof(database._context, database.view(), run, read_all=read_all)


def test_nothing_is_left_of_a_purged_document(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    before = database.stats()
    result = database.purge([GONE])
    assert result.proof is not None
    assert result.proof.remaining == ()
    assert result.is_clean
    assert result.proof.num_traces["shingle"] == 150 - 12
    assert all(result.proof.num_traces[kind] and result.proof.num_compared[kind] for kind in result.proof.num_traces)
    stats = database.stats()
    assert stats.num_documents == before.num_documents - 1
    assert database.check(read_data=True).damaged == ()
    assert GONE not in [hit.doc_id for hit in database.search([TEXT], k=5)[0]]
    again = database.ingest([tmp_path / "0.jsonl"], source="made", metadata_fields=[])
    assert (again.num_added, again.num_unchanged) == (0, 5), "a purged document is not ingested again"
    changed = write_documents(tmp_path / "changed.jsonl", {GONE: TEXT + " more"})
    assert database.ingest([changed], source="made").num_added == 0


def test_nothing_is_left_of_it_in_an_unfinished_search_for_near_duplicates(make_database: Make, tmp_path: Path) -> None:
    database = make_database({GONE: TEXT, "near": f"{TEXT} again", "same": TEXT, "other": made_text(1, 100)})
    database.near_duplicates(dry_run=True)
    assert list(Path(database.path).glob("runs/*/near/contents/0.npy"))
    assert list(Path(database.path).glob("runs/*/near/shingles/0.npy"))
    assert database.purge([GONE, "near", "same"]).is_clean
    assert not list(Path(database.path).glob("runs/*/near"))


def test_nothing_is_left_of_it_in_an_unfinished_ingest(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({"gone": made_text(5000, 150), "a": made_text(1, 60)})
    larger = write_documents(tmp_path / "larger.jsonl", {"gone": made_text(5000, 60_000), "b": made_text(7, 90)})

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retrodb.stages.transaction.commit", stop)
        with pytest.raises(KeyboardInterrupt):
            database.ingest([larger], source="made")
    blocks = Path(database.path) / "blocks"
    assert any(blocks.iterdir()), "some of its files have block digests"
    assert database.purge(["gone"]).is_clean
    assert not any(blocks.iterdir())


def test_a_task_that_runs_meanwhile_keeps_the_block_digests_of_its_files(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({"gone": made_text(5000, 150), "a": made_text(1, 60)})
    new = write_documents(tmp_path / "new.jsonl", {"b": made_text(7, 60_000)})
    write, is_clean = tokenize.write_shards, list[bool]()

    def write_and_purge(*arguments: Any, **options: Any) -> object:
        shards = write(*arguments, **options)  # which no record names yet
        is_clean.append(Database(database.path).purge(["gone"], ignore_unknown=True).is_clean)
        return shards

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "write_shards", write_and_purge)
        with pytest.raises(ConflictError, match="this 'ingest' was cancelled"):
            database.ingest([new], source="other")
    database.ingest([new], source="other")  # continues with the files that are there
    assert is_clean == [True]
    assert any((Path(database.path) / "blocks").iterdir()), "some of its files have block digests"
    assert not database.check(read_data=True).damaged


def test_a_copy_in_any_kind_of_file_is_found(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    before = Path(shutil.copytree(database.path, tmp_path / "before"))
    view = database.view()
    targets = find_targets(database._context, view, [GONE])
    content = traces_of(view, SELF, targets.first_chunks(SELF))
    ids = Traces.of({"id": [string_values(targets.id_strings)], "key": [targets.keys["key_hi"]]})
    traces = Traces.from_arrays([content.to_array(), ids.to_array()])
    held = [r for r in view.manifest.all_files() if r.first_chunk == 0 and r.kind in COPIED]
    assert {record.kind for record in held} == set(COPIED)
    assert database.purge([GONE]).is_clean

    def remaining_paths() -> set[str]:
        return {trace.path for trace in search(database, traces).remaining}

    assert remaining_paths() == set()
    planted = 0
    for path, plant in [*_copies(before, held), *_made(database)]:
        target = Path(database.path) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        plant(target)
        assert any(remaining.startswith(path) for remaining in remaining_paths()), path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        planted += 1
    assert planted == 20
    assert remaining_paths() == set()


COPIED = ("documents", "chunks", "tokens", "hashes", "ids", "vectors", "parts")


@pytest.mark.parametrize("factory", ["Flat", "IVF4,SQ8", "IVF4,RaBitQ", "IVF4,RaBitQfs"])
def test_codes_that_only_an_index_file_contains_are_found(factory: str, make_database: Make, tmp_path: Path) -> None:
    database = make_database({GONE: TEXT} | {str(n): made_text(n, 400) for n in range(60)})
    database.embed()
    assert database.index(factory=factory).factory == factory
    view = database.view()
    targets = find_targets(database._context, view, [GONE])
    traces = traces_of(view, SELF, targets.first_chunks(SELF))
    [record] = [r for r in view.manifest.files("parts") if r.path.endswith("/search_codes.npy")]
    before = (Path(database.path) / record.path).read_bytes()
    assert database.purge([GONE]).is_clean
    target = Path(database.path) / record.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(before)
    [trace] = search(database, traces).remaining
    assert (trace.path, trace.location[:12], trace.kind) == (record.path, "search codes", "vector")
    assert trace.num_values > 0
    target.unlink()
    assert search(database, traces).remaining == ()


def _copies(before: Path, held: list[FileRecord]) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Copies of files from before the purge, at their old paths."""
    for path in sorted({r.path.rpartition("/")[0] if r.kind == "parts" else r.path for r in held}):
        is_folder = (before / path).is_dir()
        yield (
            path,
            partial(shutil.copytree, before / path, dirs_exist_ok=True)
            if is_folder
            else partial(shutil.copy, before / path),
        )


def _made(database: Database) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Files of other kinds that quote or name the document."""

    def table(schema: pa.Schema, **values: Any) -> Callable[[Path], None]:
        row = {field.name: values.get(field.name, _nothing(field.type)) for field in schema}
        return lambda path: write_table(path, pa.Table.from_pylist([row], schema=schema))

    quote = TEXT[300:500]
    spool = pa.table({"doc_id": ["other"], "text": [f"and so {quote}"]})
    yield "reports/x.parquet", table(schemas.LEAK_REPORT, source="made", doc_id=GONE)
    yield "rejects/x.parquet", table(schemas.REJECTS, excerpt=quote)
    yield "inputs/made/x.parquet", table(schemas.INPUTS, path=f"/somewhere/{GONE}")
    yield "testsets/t/x/items.parquet", table(pa.schema([("id", pa.string()), ("text", pa.large_string())]), text=quote)
    yield "queries/q/x/tokens.npy", lambda path: save_array(path, _tokens(database))
    yield "runs/x/plan.json", lambda path: path.write_bytes(orjson.dumps({"where": f"doc_id = '{GONE}'"}))
    yield "runs/x/tasks/t.json", lambda path: path.write_bytes(orjson.dumps({"result": {"excerpt": quote}}))
    content = int.from_bytes(content_hash(TEXT, None)[:8], "big")
    contents, shingles = np.array([(content, 0, 7)], CONTENT_DTYPE), np.array([1, 2, _shingle()], np.uint64)
    yield "runs/x/near/contents/0.npy", lambda path: save_array(path, contents)
    yield "runs/x/near/shingles/0.npy", lambda path: save_array(path, shingles.view(SHINGLE_DTYPE))
    yield "runs/x/spool/a.arrow", lambda path: _write_arrow(path, spool)
    yield "runs/x/spool/standard-input", lambda path: path.write_bytes(orjson.dumps({"id": "y", "text": quote}))
    head = database.view().snapshot
    named = replace(head, number=999, arguments={"doc_ids": [GONE]})
    yield named.path, lambda path: path.write_bytes(dump_snapshot(named))
    yield "tmp/left-behind.npy", lambda path: path.write_bytes(b"half of something")


def _shingle() -> int:
    return int(shingle_sets(pa.array([TEXT], pa.large_string())).keys[0])


def _nothing(kind: pa.DataType) -> Any:
    if pa.types.is_nested(kind):
        return []
    return "" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else False if kind == pa.bool_() else 0


def _write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _tokens(database: Database) -> AnyArray:
    """A part of the text as another program would write it: a row of tokens that begins inside the text."""
    from retrodb.stages.ingest.tokenize import load_tokenizer

    tokenizer = load_tokenizer(database.path, database.view().settings.tokenizer_sha256)
    chunks = chunk_documents(pa.array([TEXT], pa.large_string()), None, tokenizer, 64, num_threads=1)
    return np.asarray(chunks.tokens[70:110])[None, :]


def test_text_shared_with_live_documents_is_kept_and_reported(make_database: Make, tmp_path: Path) -> None:
    database = make_database(
        {GONE: TEXT, "copy": TEXT, "quotes": f"{made_text(1, 40)} {TEXT[:200]}", "x": made_text(2, 99)}
    )
    database.embed()
    database.index()
    result = database.purge([GONE])
    assert result.proof is not None
    assert result.proof.remaining == ()
    assert result.proof.num_sharing_documents == 2
    assert [each.doc_id for each in result.proof.sharing_documents] == ["copy", "quotes"]
    assert database.search([TEXT], k=1)[0][0].doc_id == "copy"


def test_text_shared_with_deleted_documents_is_deleted(make_database: Make, tmp_path: Path) -> None:
    database = make_database({GONE: TEXT, "x": made_text(2, 99)})
    others = {"copy": TEXT, "quotes": f"{made_text(1, 40)} {TEXT[:200]}"}
    rest = {str(n): made_text(100 + n, 300) for n in range(20)}
    database.ingest([write_documents(tmp_path / "more.jsonl", others | rest)], source="more")
    database.embed()
    database.index()
    database.filter(doc_ids=list(others), reason="toxic")
    result = database.purge([GONE])
    assert result.proof is not None
    assert (result.proof.remaining, result.proof.num_sharing_documents) == ((), 0)
    assert {name for [name] in database.sql("select doc_id from documents").rows} == {"x", *rest}
    again = database.ingest([tmp_path / "more.jsonl"], source="more", metadata_fields=[])
    assert again.num_added == 0, "a filtered document is not ingested again"
    assert database.check(read_data=True).damaged == ()


def test_pinned_snapshots_expire_only_with_break_pins(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    database.pin(2, name="training-7")
    before = database.view().snapshot.number
    with pytest.raises(UsageError, match=r"training-7 \(snapshot 2\).*--break-pins"):
        database.purge([GONE])
    assert database.view().snapshot.number == before
    assert database.purge([GONE], dry_run=True).broken_pins == ("training-7",)
    result = database.purge([GONE], break_pins=True)
    assert result.is_clean
    assert database.view().snapshot.names(PinEntry) == []
    with pytest.raises(UsageError, match="expired"):
        database.view(2)
    database.view(0)


def test_a_quoting_test_set_changes_only_with_include_testsets(make_database: Make, tmp_path: Path) -> None:
    database = make_database({GONE: TEXT, "x": made_text(2, 99)})
    items = {"quote": TEXT[:250], "other": made_text(77, 50)}
    database.dedup([write_documents(tmp_path / "exam.jsonl", items)], rule="containment>=0.9")
    result = database.purge([GONE])
    assert result.proof is not None
    assert [each.path.split("/")[:2] for each in result.proof.remaining] == [["testsets", "exam"]]
    assert not result.is_clean
    result = database.purge([GONE], include_testsets=True)
    assert result.is_clean, "the first purge stored the traces"
    [testset] = database.testsets()
    assert (testset.num_items, testset.num_unscreened_shards) == (1, 0)


def test_a_held_out_document_is_purged_with_its_test_item(make_database: Make, tmp_path: Path) -> None:
    database = make_database({})
    documents = {str(n): made_text(n, 100) for n in range(12)}
    database.ingest([write_documents(tmp_path / "1.jsonl", documents)], source="made", holdout=0.5)
    held = database.view().query_set("heldout")
    name = str(held.documents(np.array([0]))[0]["doc_id"])  # type: ignore[index]
    database.embed()
    result = database.purge([name], source="made")
    assert (result.num_documents, result.is_clean) == (1, True), result.proof
    assert database.check().damaged == ()
    assert database.testsets()[0].num_items == database.stats().query_sets[0].num_documents


def test_compacted_and_unknown_documents(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    database.filter(doc_ids=[GONE], reason="toxic")
    database.compact(min_deleted=0)
    result = database.purge([GONE, "nobody"])
    assert (result.num_documents, result.unknown_names, result.is_clean) == (1, ("nobody",), True)
    assert database.ingest([tmp_path / "0.jsonl"], source="made", metadata_fields=[]).num_added == 0
    with pytest.raises(UsageError, match="no documents to purge"):
        database.purge([])
    with pytest.raises(UsageError, match="no document has any of these names"):
        database.purge(["nobody"])
    assert database.gc(dry_run=True).open_runs == ()


def test_a_snapshot_with_purged_documents_is_not_restored(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    database.purge([GONE])
    with pytest.raises(UsageError, match="expired"):
        database.restore(2)
    head = database.view().snapshot.number
    restored = database.restore(0)
    assert restored.snapshot == head + 1
    assert database.ingest([tmp_path / "0.jsonl"], source="made").num_added == 4, (
        "the purged document is not ingested again"
    )


FRACTIONS = [0.3, 0.75, 0.9, *(pytest.param(at / 40, marks=pytest.mark.soak) for at in range(40))]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_an_interrupted_purge_is_continued(fraction: float, make_database: Make, tmp_path: Path) -> None:
    database = make_database({GONE: TEXT, "a": made_text(1, 60), "b": made_text(2, 150)})
    database.embed()
    database.index()
    template = tmp_path / "template"
    shutil.copytree(database.path, template)
    counting = FaultyStorage(LocalStorage(Path(database.path)))
    Database(counting).purge([GONE])
    at = int(fraction * len(counting.operations))
    other = LocalStorage(Path(shutil.copytree(template, tmp_path / "other")))
    with pytest.raises(Crash):
        Database(FaultyStorage(other, at, "crash")).purge([GONE])
    shutil.rmtree(tmp_path / "other" / "tmp", ignore_errors=True)
    again = Database(other)
    result = again.purge([GONE])
    assert result.is_clean, result.proof
    view = again.view()
    live = np.flatnonzero(view.chunks.is_live(np.arange(view.snapshot.next_chunk)))
    kept = database.view()
    assert view.chunks.texts(live) == kept.chunks.texts(live)
    assert {d["doc_id"] for d in view.chunks.documents(live) if d} == {"a", "b"}


def test_only_the_named_document_cannot_be_ingested_again(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"7": made_text(1, 60), "8": made_text(2, 60)})
    other = write_documents(tmp_path / "o.jsonl", {"7": made_text(3, 60)})
    database.ingest([other], source="other")
    assert database.purge(["7", "9"], source="made").unknown_names == ('{"id": "9", "source": "made"}',)
    assert database.sql("select source, doc_id from documents order by 1").rows == [("made", "8"), ("other", "7")]
    more = write_documents(tmp_path / "m.jsonl", {"7": made_text(4, 60), "9": made_text(5, 60)})
    assert database.ingest([more], source="made").num_added == 1, "9 was no document at the time of the purge"
    assert database.ingest([more], source="new").num_added == 2
    again = database.purge([DocumentName("7", "made")])
    assert (again.num_documents, again.unknown_names, again.is_clean) == (0, (), True)
