"""Counts of deleted rows, and what planning a compaction may read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.format.records import ChunkRange
from retrodb.format.rows import RowSet
from retrodb.maintain.compact.plan import plan_compact
from retrodb.maintain.compact.row_counts import count_held_rows, num_deleted_rows
from retrodb.store.storage import LocalStorage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import SELF, View

Make = Callable[..., Database]


@pytest.fixture
def grown(make_database: Make, tmp_path: Path) -> Database:
    """Shards of several kinds: whole, with deleted rows, compacted, compacted with deleted rows."""
    database = make_database({})
    for shard in range(5):
        documents = {f"{shard}-{n}": made_text(100 * shard + n, 60 + 70 * (n % 3)) for n in range(6 + 3 * (shard % 2))}
        database.ingest([write_documents(tmp_path / f"{shard}.jsonl", documents)], source=f"s{shard}")
        if shard in (1, 2):
            database.filter(doc_ids=[f"{shard}-1", f"{shard}-4"], reason="toxic")
    database.compact()
    database.filter(doc_ids=["0-1", "2-0", "2-5"], reason="more")
    database.filter(doc_ids=["3-0", "3-1", "3-2", "3-3"], reason="toxic")
    database.undelete("toxic", where="doc_id = '3-1'")
    database.embed()
    database.index()
    return database


def test_counts_are_those_of_masks(grown: Database) -> None:
    chunks = grown.view().chunks
    assert {record.num_rows == record.num_chunks for record in chunks.ranges} == {True, False}
    for record in chunks.ranges:
        present, live = chunks.present_mask(*record.span), chunks.live_mask(*record.span)
        assert num_deleted_rows(chunks, record) == int((present & ~live).sum())


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_any_range_are_counted_as_masks_count_them(seed: int, grown: Database) -> None:
    rng, chunks = np.random.default_rng(seed), grown.view().chunks
    for _ in range(20):
        start = int(rng.integers(0, chunks.end))
        span = ChunkRange(start, int(rng.integers(1, chunks.end + 20 - start)))
        present, live = chunks.present_mask(*span), chunks.live_mask(*span)
        held = rng.random(span.num_chunks) < rng.choice([0.3, 1.0])
        expected = (int((held & present).sum()), int((held & live).sum()))
        assert count_held_rows(chunks, span, RowSet.from_mask(held)) == expected


def test_a_part_may_cover_more_rows_than_a_bitmap_of_32_bits_has(grown: Database) -> None:
    chunks, num_rows = grown.view().chunks, (1 << 32) + 5
    present, live = chunks.present_mask(0, chunks.end), chunks.live_mask(0, chunks.end)
    all_rows = count_held_rows(chunks, ChunkRange(0, num_rows), RowSet.all(num_rows))
    assert all_rows == (int(present.sum()), int(live.sum()))
    held = np.append(np.arange(0, chunks.end, 2), num_rows - 1)
    some_rows = count_held_rows(chunks, ChunkRange(0, num_rows), RowSet.from_present(held, num_rows))
    assert some_rows == (int(present[::2].sum()), int(live[::2].sum()))


def test_planning_opens_no_file_of_a_shard_that_is_not_chosen(grown: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    local = LocalStorage.local

    def recorded(self: LocalStorage, path: str) -> Path:
        opened.append(path)
        return local(self, path)

    view = grown.view()
    assert view.manifest.paths()
    monkeypatch.setattr(LocalStorage, "local", recorded)
    plan = plan_compact(view, 0.2)
    chosen = {rewrite.span for rewrite in plan.rewrites}
    assert 0 < len(chosen) < len(view.chunks.ranges)
    assert plan.part_groups("default") is not None
    assert {path.partition("/")[0] for path in opened} <= {"tombstones"}
    monkeypatch.setattr(View, "embeddable_mask", None)
    monkeypatch.setattr(ChunkSet, "live_mask", None)
    again = plan_compact(grown.view(), 0.2)
    assert again.rewrites == plan.rewrites
    assert again.view.query_set(SELF) is again.view.chunks


def test_an_unrelated_commit_does_not_change_the_tasks(grown: Database, tmp_path: Path) -> None:
    from retrodb.maintain.compact.rewrite import rewrite_task

    def tasks() -> dict[ChunkRange, str]:
        view = grown.view()
        return {rewrite.span: rewrite_task(view, rewrite).id for rewrite in plan_compact(view, 0.0).rewrites}

    before = tasks()
    grown.filter(doc_ids=["4-2"], reason="later")
    after = tasks()
    assert set(before.items()) < set(after.items())
    grown.filter(doc_ids=["0-2"], reason="later")
    span = grown.view().chunks.ranges[0].span
    assert tasks()[span] != after[span]
