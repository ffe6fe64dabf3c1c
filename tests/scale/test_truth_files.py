"""The tasks of an exact scan read the files of their own ranges, each of them once, and the command reads none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.format.records import ChunkRange
from retrodb.stages.neighbours import truth_tasks
from retrodb.stages.planned_view import open_planned

from .watched import WatchedStorage, watch_tasks

SHARDS, SHARD_CHUNKS, SHARDS_OF_A_TASK = 6, 20, 2


@pytest.fixture
def storage(tmp_path: Path, made_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> WatchedStorage:
    """A database of one document a shard, with several lists."""
    for module in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", SHARD_CHUNKS)
    database = retrodb.create(tmp_path / "db", tokenizer=str(made_tokenizer), encoder="hashing:32")
    texts = {str(i): made_text(i, 1100) for i in range(SHARDS)}
    database.ingest([write_documents(tmp_path / "documents.jsonl", texts)], source="made")
    database.embed()
    database.index(factory="IVF2,SQ8")
    assert len(database.view().shards) == SHARDS
    watch_tasks(monkeypatch)
    return WatchedStorage(tmp_path / "db")


@pytest.mark.parametrize("exclude", [(), ("document", "content", "cluster")], ids=["nothing", "exclusions"])
def test_a_task_of_an_exact_scan_reads_the_files_of_its_ranges(
    storage: WatchedStorage, monkeypatch: pytest.MonkeyPatch, exclude: tuple[str, ...]
) -> None:
    monkeypatch.setattr(truth_tasks, "_MIN_RANGE_CHUNKS", 1)
    monkeypatch.setattr(truth_tasks, "_TASK_CHUNKS", SHARDS_OF_A_TASK * SHARD_CHUNKS)
    run, scans = truth_tasks.run_truth_scan, list[tuple[tuple[ChunkRange, ...], set[str]]]()

    def watched(place: Any, task: Any, clock: str, **options: Any) -> Any:
        scans.append((task.payload.ranges, storage.reads.tasks[-1]))
        return run(place, task, clock, **options)

    monkeypatch.setattr(truth_tasks, "run_truth_scan", watched)
    monkeypatch.setattr(truth_tasks, "planned_view", open_planned.__wrapped__)  # every task opens its files itself
    database = Database(storage)
    assert database.neighbours(k=2, exclude=exclude).recall_reached is not None
    view = retrodb.open(storage.root).view()
    spans = {record.path: record.span for record in view.manifest.all_files() if record.first_chunk >= 0}
    assert len(scans) == SHARDS // SHARDS_OF_A_TASK
    for ranges, paths in scans:
        first, end = ranges[0].first_chunk, ranges[-1].end
        read = {path: spans[path] for path in paths if path in spans}
        assert all(first <= span.first_chunk and span.end <= end for span in read.values())
        assert {path.partition("/")[0] for path in read} >= {"vectors", "parts"}
        assert not [path for path in read if path.startswith("parts/") and not path.endswith("/lists.npy")]
    vectors = [path for _, paths in scans for path in paths if path.startswith("vectors/")]
    assert sorted(vectors) == sorted(record.path for record in view.manifest.files("vectors"))
    assert not [path for path in storage.reads.planning if path.startswith(("vectors/", "documents/", "parts/"))]
