"""Merging index parts: fewer files and the same answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from faulty_storage import Crash, FaultyStorage
from made_documents import made_text, write_documents
from marked import mark

import retrodb
from retrodb.ann.merge_policy import choose_merges
from retrodb.config import IndexParams
from retrodb.database import Database
from retrodb.errors import ConflictError, RetroDBError
from retrodb.stages.context import Context
from retrodb.stages.index.command import execute_index, plan_index
from retrodb.stages.index.live_parts import coverage_of, live_parts, missing_in, missing_rows, parts_of
from retrodb.stages.index.merge import MergePlan, MergeResult, execute_merge, merge_task, run_merge_task, span_of
from retrodb.stages.index.missing_task import find_missing_rows
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import LocalStorage
from retrodb.view.coverage import Coverage

Make = Callable[..., Database]
SHARDS = 3


@pytest.fixture(autouse=True)
def _merge_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.stages.index.merge.choose_merges", partial(choose_merges, merge_factor=SHARDS))


@pytest.fixture
def grown(make_database: Make, tmp_path: Path) -> Database:
    """A database of three index parts, the last of which is not yet indexed."""
    database = make_database({})
    for shard in range(SHARDS):
        documents = {f"{shard}-{i}": made_text(10 * shard + i, 2500) for i in range(5)}
        database.ingest([write_documents(tmp_path / f"{shard}.jsonl", documents)], source=f"s{shard}")
        database.embed()
        if shard + 1 < SHARDS:
            database.index(**({} if shard else {"factory": "IVF4,SQ8"}))
    return database


def answers(database: Database, **options: object) -> tuple[np.ndarray, np.ndarray]:
    queries = database.view().vectors("default", np.arange(0, database.view().chunks.end, 3)).astype(np.float32)
    return database.search_arrays(queries[queries.any(axis=1)], 7, nprobe=2, **options)


def same(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> bool:
    return all((a == b).all() for a, b in zip(first, second, strict=True))


def test_index_merges_parts_in_a_second_commit_and_answers_stay_equal(grown: Database) -> None:
    result = grown.index()
    assert (result.num_merged_parts, result.num_parts) == (SHARDS, 1)
    assert [info.command for info in grown.snapshots()][-2:] == ["index", "merge"]
    before = answers(grown, as_of=result.snapshot - 1)
    assert len(parts_of(grown.view(result.snapshot - 1), "default")) == SHARDS
    assert same(before, answers(grown))
    again = grown.index()
    assert (again.snapshot, again.num_vectors, again.num_merged_parts) == (result.snapshot, 0, 0)


def test_a_dry_run_counts_the_parts_to_merge(grown: Database) -> None:
    grown.index()
    number = grown.view().snapshot.number
    database = retrodb.open(grown.path)
    assert database.index(dry_run=True).num_merged_parts == 0
    assert database.view().snapshot.number == number


def test_search_returns_no_chunk_that_was_deleted_after_a_merge(grown: Database, tmp_path: Path) -> None:
    grown.index()
    deleted = {f"{shard}-1" for shard in range(SHARDS)}
    tests = {doc_id: made_text(10 * int(doc_id[0]) + 1, 2500) for doc_id in deleted}
    grown.dedup([write_documents(tmp_path / "t.jsonl", tests)], name="t")
    chunks = grown.view().chunks
    ids = answers(grown)[0]
    assert (ids >= 0).any()
    assert chunks.is_live(ids[ids >= 0]).all()
    hits = grown.search([made_text(11, 60)], k=100)[0]
    assert not deleted & {hit.doc_id for hit in hits}


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_a_merge_can_drop_rows_and_keeps_the_ids_of_the_others(grown: Database, fraction: float) -> None:
    grown.index()
    view = grown.view()
    parts = parts_of(view, "default")
    span = span_of(parts)
    keep = np.random.default_rng(0).random(span.num_chunks) >= fraction
    mark(grown, span.first_chunk + np.flatnonzero(~keep))
    storage = open_storage(grown.path)
    record = run_merge_task(storage, merge_task("default", parts, grown.view()), "")
    kept = parts[0].row_set(view.files).mask & keep
    if not kept.any():
        assert record.files == ()
        return
    assert {file.num_rows for file in record.files} == {int(kept.sum())}
    assert (view.files.rows(record.files[0]).mask == kept).all()
    assert record.files[0].span == span


def test_a_merge_that_looks_at_few_rows_at_a_time_writes_the_same_files(
    grown: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.stages.index.merge.choose_merges", lambda sizes: [])
    grown.index()
    storage, parts = open_storage(grown.path), parts_of(grown.view(), "default")
    assert len(parts) == SHARDS
    mark(grown, np.flatnonzero(np.random.default_rng(0).random(span_of(parts).end) < 0.2))
    task = merge_task("default", [*parts, parts[1]], grown.view())
    expected = run_merge_task(storage, task, "").files
    monkeypatch.setattr("retrodb.stages.index.merge._WINDOW", 11)
    monkeypatch.setattr("retrodb.ann.merge_parts.BLOCK_ROWS", 16)
    assert run_merge_task(storage, task, "").files == expected


def test_a_row_of_two_parts_is_merged_once(grown: Database) -> None:
    grown.index()
    view = grown.view()
    parts = parts_of(view, "default")
    twice = [*parts, parts[0]]
    storage = open_storage(grown.path)
    record = run_merge_task(storage, merge_task("default", twice), "")
    assert record.counts["vectors"] == parts[0].num_rows


def test_merges_of_different_ranges_run_side_by_side(grown: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.stages.index.merge.choose_merges", lambda sizes: [])
    grown.index()
    expected = answers(grown)
    context = Context(open_storage(grown.path))
    view = context.view()
    parts = parts_of(view, "default")
    assert len(parts) == SHARDS
    plan = partial(MergePlan, view, "default", result=MergeResult(view.snapshot.number, 1, SHARDS))
    first, second, both = plan((tuple(parts[:1]),)), plan((tuple(parts[1:]),)), plan((tuple(parts),))
    execute_merge(context, first)
    result = execute_merge(context, second)  # planned on the same snapshot, and rebased
    assert result.snapshot == view.snapshot.number + 2
    assert len(parts_of(grown.view(), "default")) == 2
    assert same(expected, answers(grown))
    with pytest.raises(ConflictError, match="parts/default@"):
        execute_merge(context, both)


def test_a_merged_part_may_span_more_ids_than_32_bits(grown: Database) -> None:
    grown.index()
    view = grown.view()
    [part] = parts_of(view, "default")
    far = 1 << 33
    moved = replace(part, records=tuple(record.at(record.first_chunk + far) for record in part.records))
    storage = open_storage(grown.path)
    record = run_merge_task(storage, merge_task("default", [part, moved]), "")
    [file, *_] = record.files
    rows = part.row_set(view.files).present
    assert np.array_equal(view.files.rows(file).present, np.concatenate([rows, rows + far]))
    covered = Coverage([file], view.files)
    assert np.array_equal(np.array(covered.covered_rows(part.span.first_chunk + far, part.span.num_chunks)), rows)
    [hit] = covered.lookup(part.span.first_chunk + np.array([rows[1], rows[0] + far, rows[0] + far - 1]))
    assert (hit.where.tolist(), hit.positions.tolist()) == ([0, 1], [1, len(rows)])
    mark(grown, part.span.first_chunk + rows[::2])
    [file, *_] = run_merge_task(storage, merge_task("default", [part, moved], grown.view()), "").files
    assert np.array_equal(view.files.rows(file).present, rows[1::2]), "the moved rows are of no document"


def test_an_unrelated_commit_does_not_change_a_merge_that_drops_rows(grown: Database, tmp_path: Path) -> None:
    grown.index()
    parts = parts_of(grown.view(), "default")

    def task_id() -> str:
        return merge_task("default", parts, grown.view()).id

    first = task_id()
    grown.ingest([write_documents(tmp_path / "more.jsonl", {"new": made_text(99, 100)})], source="more")
    grown.filter(doc_ids=["new"], reason="gone")
    assert task_id() == first
    mark(grown, [parts[0].span.first_chunk])
    assert task_id() != first


def test_missing_rows_are_those_that_no_part_has(grown: Database) -> None:
    view = grown.view()
    [part] = missing_rows(view, "default")
    assert part.vectors.first_chunk == view.shards.first_chunk[-1]
    assert (part.num_rows, part.rows) == (part.vectors.num_rows, part.vectors.rows)
    grown.index()
    view = grown.view()
    assert not list(missing_rows(view, "default"))
    assert sum(len(part.ids_N) for part in live_parts(view, "default")) == sum(
        record.num_rows for record in view.manifest.files("vectors", "default")
    )


def test_a_killed_index_run_is_continued_by_the_same_command(grown: Database) -> None:
    storage = FaultyStorage(open_storage(grown.path))
    counting = Database(storage, clock="2026-01-01T00:00:00.000000")
    start = len(storage.operations)
    number = counting.view().snapshot.number
    total = 0
    for at in (0, 40, 80, 120, 160, 200):  # of the operations: in planning, building, merging, committing
        faulty = FaultyStorage(open_storage(grown.path), start + at, "crash")
        try:
            Database(faulty, clock="2026-01-01T00:00:00.000000").index()
        except (Crash, RetroDBError):
            total += 1
    retrodb.open(grown.path).index()
    done = retrodb.open(grown.path)
    assert total > 0
    assert len(parts_of(done.view(), "default")) == 1
    assert done.view().snapshot.number == number + 2
    assert done.check(read_data=True).damaged == ()


def test_missing_rows_are_the_same_in_tasks(grown: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown.index()
    grown.filter(doc_ids=["0-1", "2-3"], reason="bad")
    grown.ingest([write_documents(tmp_path / "new.jsonl", {"new": made_text("new", 500)})], source="new")
    grown.filter(doc_ids=["1-0"], reason="bad")
    grown.embed()
    grown.undelete("bad")
    monkeypatch.setattr("retrodb.stages.index.missing_task._TASK_CHUNKS", 1)
    context = Context(LocalStorage(Path(grown.path)))
    view = context.view()
    for is_new in (False, True):
        parts = coverage_of(view, [] if is_new else parts_of(view, "default"))
        files = view.manifest.files("vectors", "default")
        expected = tuple(missing for file in files if (missing := missing_in(view, parts, file)))
        assert is_new or expected == tuple(missing_rows(view, "default"))
        assert find_missing_rows(context, view, "default", is_new=is_new) == expected
        assert expected
    assert not [path for path in view.storage.list("runs") if "missing" in path]


def test_a_new_codebook_is_not_committed_over_parts_of_another_one(grown: Database) -> None:
    context = Context(open_storage(grown.path))
    plan = plan_index(context, IndexParams(factory="IVF4,SQ8"), retrain=True)
    grown.index()  # adds a part, and merges
    with pytest.raises(ConflictError, match="during index"):
        execute_index(context, plan)
    again = plan_index(context, IndexParams(factory="IVF4,SQ8"), retrain=True)
    assert execute_index(context, again).num_parts == 1
