"""A purge removes documents from packed query sets, and finds them in query sets that it does not rewrite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from made_documents import made_text
from made_up import id_of

from retrodb.database import Database
from retrodb.engine.run import open_run
from retrodb.format.parquet import read_table, write_table
from retrodb.maintain.purge.proof import run_proof
from retrodb.maintain.purge.targets import find_targets
from retrodb.maintain.purge.traces import Traces, store_traces, string_values

Make = Callable[..., Database]

PURGED, TEXT = "gone-1", made_text(5000, 400)


def packed(make: Make) -> Database:
    """A database whose own documents are packed in sequences, with neighbours."""
    database = make({PURGED: TEXT} | {f"kept-{n}": made_text(n, 400) for n in range(6)})
    database.add_packed_queries("training", sequences=256)
    database.embed()
    database.index()
    database.neighbours(k=2, queries="training", table="training")
    return database


def sequence_documents(database: Database) -> dict[str, list[str]]:
    """The documents of every sequence that is left."""
    files = database.view().manifest.files("queries", "training")
    tables = [read_table(Path(database.path) / file.path) for file in files if file.path.endswith("/documents.parquet")]
    rows = pa.concat_tables(tables).to_pylist()
    return {row["doc_id"]: orjson.loads(row["metadata"])["documents"] for row in rows}


def test_packed_sequences_with_a_purged_document_are_deleted(make_database: Make) -> None:
    database = packed(make_database)
    before = sequence_documents(database)
    containing = {name for name, documents in before.items() if f"made/{PURGED}" in documents}
    assert 0 < len(containing) < len(before)
    planned = database.purge([PURGED], dry_run=True)
    result = database.purge([PURGED])
    assert result.proof is not None
    assert result.proof.remaining == ()
    assert planned.num_packed_sequences == result.num_packed_sequences == len(containing)
    assert sequence_documents(database) == {n: documents for n, documents in before.items() if n not in containing}
    assert database.check(read_data=True).damaged == ()


def test_a_table_of_packed_sequences_keeps_its_other_rows(make_database: Make) -> None:
    database = packed(make_database)
    before = set(database.neighbour_table("training").rows().tolist())
    database.purge([PURGED])
    table, view = database.neighbour_table("training"), database.view()
    kept = {row for row in before if view.query_set("training").is_live(np.array([row]))[0]}
    assert set(table.rows().tolist()) == kept < before
    neighbours = table.read(table.rows())[0]
    assert view.chunks.is_live(neighbours[neighbours >= 0]).all()
    assert database.embed().num_query_rows == 0
    database.repair_neighbours(table="training")


def test_the_set_can_be_packed_again_without_the_document(make_database: Make) -> None:
    database = packed(make_database)
    database.purge([PURGED])
    database.add_packed_queries("training", sequences=256)
    documents = {name for names in sequence_documents(database).values() for name in names}
    assert documents == {f"made/kept-{n}" for n in range(6)}
    assert database.purge([PURGED]).is_clean


@pytest.mark.parametrize("name", [PURGED, f"made/{PURGED}"])
def test_an_id_in_metadata_is_reported(name: str, make_database: Make) -> None:
    database = make_database({PURGED: TEXT, "kept": made_text(1, 99)})
    assert database.purge([PURGED]).is_clean
    path = Path(database.path) / f"queries/other/{id_of('x')}/documents.parquet"
    path.parent.mkdir(parents=True)
    metadata = [orjson.dumps({"answers": {"from": ["elsewhere", name]}}).decode(), "{}"]
    write_table(path, pa.table({"metadata": metadata}))
    view = database.view()
    ids = find_targets(database._context, view, [PURGED]).id_strings
    traces = Traces.of({"id": [string_values(ids)]})
    run = open_run(view.storage, "purge", {"names": "some"})
    store_traces(view.storage, run.id, traces)
    [trace] = run_proof(database._context, view, run).remaining
    assert (trace.location, trace.kind, trace.num_values) == ("column metadata, row 0", "id", 1)
    assert path.match(trace.path)
    assert database.purge([PURGED]).is_clean, "no snapshot names this file, so it is deleted"
    assert not path.exists()


def test_an_id_in_the_metadata_of_a_live_document_is_not_reported(make_database: Make, tmp_path: Path) -> None:
    database = make_database({PURGED: TEXT})
    record = {"id": "kept", "text": made_text(1, 99), "replaces": PURGED}
    (tmp_path / "more.jsonl").write_bytes(orjson.dumps(record))
    database.ingest([tmp_path / "more.jsonl"], source="other")
    assert PURGED in str(database.sql("select metadata from documents where doc_id = 'kept'").rows)
    assert database.purge([PURGED]).is_clean
