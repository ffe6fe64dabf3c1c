"""Tasks find documents by their keys: the same ones whatever the tasks, and no run is left behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.engine.local import LocalEngine
from retrodb.engine.task import Task, TaskRecord
from retrodb.errors import ConflictError, UsageError
from retrodb.stages import document_lookup
from retrodb.stages.deletion.filter import FilterResult
from retrodb.stages.document_lookup import find_documents
from retrodb.store.storage import Storage
from retrodb.view.named import Pair

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Database:
    """Two sources with some equal ids, older versions, and a document that compaction dropped."""
    for name in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{name}.MAX_SHARD_CHUNKS", 8)
    made = make_database({f"d{n}": made_text(n, 90) for n in range(12)})
    made.ingest(
        [write_documents(tmp_path / "1.jsonl", {f"d{n}": made_text(50 + n, 90) for n in range(9, 15)})], source="b"
    )
    made.filter(doc_ids=["d3"], reason="x")
    made.compact(min_deleted=0)
    made.ingest(
        [write_documents(tmp_path / "2.jsonl", {f"d{n}": made_text(70 + n, 90) for n in range(3)})], source="made"
    )
    assert len(made.view().shards) == 3
    return made


def present_documents(database: Database) -> dict[Pair, list[int]]:
    """All documents with their first chunk, from a scan."""
    view, found = database.view(), defaultdict[Pair, list[int]](list)
    for record in view.chunks.ranges:
        table = view.chunks.documents_table(record)
        for source, doc_id, row in zip(
            *(table.column(c).to_pylist() for c in ("source", "doc_id", "first_row")), strict=True
        ):
            found[source, doc_id].append(record.first_chunk + row)
    return dict(found)


@pytest.mark.parametrize(("task_bytes", "workers"), [(1, 1), (1 << 20, 1), (1, 2)])
def test_tasks_find_every_version_that_a_scan_finds(
    database: Database, monkeypatch: pytest.MonkeyPatch, task_bytes: int, workers: int
) -> None:
    monkeypatch.setattr(document_lookup, "_TASK_BYTES", task_bytes)
    monkeypatch.setattr(document_lookup, "_BYTES_OF_ONE_PROCESS", 0)
    present = present_documents(database)
    assert ("made", "d3") not in present
    context = replace(database._context, engine=LocalEngine(workers))
    wanted = [(source, f"d{n}") for source in ("made", "b", "none") for n in range(20)]
    found = find_documents(context, database.view(), wanted)
    assert {pair: sorted(ids) for pair, ids in found.items()} == {p: sorted(present[p]) for p in wanted if p in present}
    assert find_documents(context, database.view(), []) == {}


def test_a_look_up_leaves_no_run(database: Database) -> None:
    runs = Path(database.path) / "runs"
    before = sorted(runs.iterdir())
    assert database.filter(doc_ids=["nothing"], reason="x", dry_run=True).unknown_names == ("nothing",)
    with pytest.raises(UsageError, match="ambiguous"):
        database.filter(doc_ids=["d10"], reason="x", dry_run=True)
    assert sorted(runs.iterdir()) == before


def test_an_equal_look_up_of_another_process_is_refused_and_leaves_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, run_task = Path(database.path) / "runs", document_lookup.run_find_keys
    before, results = sorted(runs.iterdir()), list[FilterResult]()

    def look_up_meanwhile(
        storage: Storage, task: Task[document_lookup.FindKeysPayload, document_lookup.FoundKeys], clock: str
    ) -> TaskRecord[document_lookup.FoundKeys]:
        if not results:
            monkeypatch.setattr(document_lookup, "run_find_keys", run_task)
            results.append(Database(database.path).filter(doc_ids=["d1"], reason="x", dry_run=True))
        return run_task(storage, task, clock)

    monkeypatch.setattr(document_lookup, "run_find_keys", look_up_meanwhile)
    with pytest.raises(ConflictError, match="another process did the same work"):
        database.filter(doc_ids=["d1"], reason="x", dry_run=True)
    assert sorted(runs.iterdir()) == before
    assert [database.filter(doc_ids=["d1"], reason="x", dry_run=True)] == results
