"""A table depends on the chunks that are live and on the codebook, and not on how the database came to hold them.

Random histories of the same content are replayed with maintenance in other places: parts are built and merged early or late,
shards are compacted or not, the join is split or not. All tables of lists have equal rows, and an exact table those of brute
force.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.format.arrays import Float32Array, Int64Array

K, WIDTH = 3, 5  # neighbours of a row, and those that are stored
_TOPICS = 12  # texts are taken from so many, so that many are equal
_TEST_ITEM = "item"  # seed of a text that a test set and some documents share


@dataclass(frozen=True)
class Batch:
    """Documents that are ingested together: the topic and the number of words of each."""

    documents: tuple[tuple[int, int], ...]
    has_long: bool  # one document with more chunks than a shard
    has_item: bool  # one document that a test set overlaps


Step = Batch | str
BATCHES = st.builds(
    Batch,
    st.lists(st.tuples(st.integers(0, _TOPICS - 1), st.integers(1, 160)), min_size=1, max_size=12).map(tuple),
    st.booleans(),
    st.booleans(),
)
HISTORIES = st.lists(
    st.one_of(BATCHES, st.sampled_from(["delete even", "delete long", "undelete even", "screen"])),
    min_size=2,
    max_size=6,
)


@dataclass(frozen=True)
class Layout:
    """How a history is replayed, and its tables are computed."""

    indexes_each: bool  # after each step, else at the end
    merges: bool  # parts, by the policy; else never
    compacts_after: int  # a step; beyond the last: never. Only what is gone for good is compacted
    list_ranges: int
    workers: int = 1


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=HISTORIES, indexes_each=st.booleans(), merges=st.booleans(), ranges=st.integers(2, 9))
def test_tables_depend_on_live_chunks_and_codebook_alone(
    made_tokenizer: Path, history: list[Step], indexes_each: bool, merges: bool, ranges: int
) -> None:
    _compare(made_tokenizer, history, indexes_each=indexes_each, merges=merges, ranges=ranges, workers=1)


@pytest.mark.soak
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    history=HISTORIES,
    indexes_each=st.booleans(),
    merges=st.booleans(),
    ranges=st.integers(2, 17),
    workers=st.sampled_from([1, 1, 1, 2]),
)
def test_tables_of_many_histories_depend_on_live_chunks_and_codebook_alone(
    made_tokenizer: Path, history: list[Step], indexes_each: bool, merges: bool, ranges: int, workers: int
) -> None:
    _compare(made_tokenizer, history, indexes_each=indexes_each, merges=merges, ranges=ranges, workers=workers)


def _compare(
    tokenizer: Path, history: Sequence[Step], *, indexes_each: bool, merges: bool, ranges: int, workers: int
) -> None:
    plain = Layout(indexes_each=False, merges=True, compacts_after=len(history), list_ranges=1)
    other = Layout(indexes_each, merges, _last_change(history), ranges, workers)
    with tempfile.TemporaryDirectory() as folder:
        databases = [_replay(Path(folder) / str(n), tokenizer, history, lay) for n, lay in enumerate((plain, other))]
        for exclude in (("document",), ("document", "content")):
            lists = [_table(db, lay, exclude, exact=False) for db, lay in zip(databases, (plain, other), strict=True)]
            exact = [_table(db, lay, exclude, exact=True) for db, lay in zip(databases, (plain, other), strict=True)]
            for ours, theirs in (lists, exact):
                np.testing.assert_array_equal(ours.rows, theirs.rows)
                np.testing.assert_array_equal(ours.ids, theirs.ids)
                np.testing.assert_array_equal(ours.distances, theirs.distances)
            _compare_with_brute_force(databases[0], exact[0], exclude)


def _last_change(history: Sequence[Step]) -> int:
    """The last step that revokes a deletion: what is compacted before it could not come back."""
    return max((number for number, step in enumerate(history) if step == "undelete even"), default=0)


def _replay(folder: Path, tokenizer: Path, history: Sequence[Step], layout: Layout) -> Database:
    folder.mkdir()
    db = retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder="hashing:16")
    db = retrodb.open(folder / "db", workers=layout.workers)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("shard", "tokenize"):
            patch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", 64)
        if not layout.merges:
            patch.setattr("retrodb.stages.index.merge.choose_merges", lambda sizes: [])
        first = Batch(tuple((n % _TOPICS, 20 + 7 * n % 150) for n in range(120)), has_long=True, has_item=True)
        _ingest(db, folder, 0, first)
        db.embed()
        db.index(factory="IVF8,SQ8")  # the codebook of all that follows
        for number, step in enumerate(history):
            if isinstance(step, Batch):
                _ingest(db, folder, number + 1, step)
            else:
                _change(db, folder, step)
            if layout.indexes_each:
                db.embed()
                db.index()
            if number == layout.compacts_after:
                db.compact(min_deleted=0.0)
        db.embed()
        db.index()
    return db


def _ingest(db: Database, folder: Path, number: int, batch: Batch) -> None:
    documents = {f"b{number}-{n}": made_text(topic, words) for n, (topic, words) in enumerate(batch.documents)}
    if batch.has_long:
        documents[f"b{number}-long"] = made_text(f"long {number}", 2500)
    if batch.has_item:
        documents[f"b{number}-item"] = made_text(_TEST_ITEM, 60)
    db.ingest([write_documents(folder / f"{number}.jsonl", documents)], source=f"source-{number}")


def _change(db: Database, folder: Path, step: str) -> None:
    match step:
        case "delete even":
            db.filter(where="doc_id like '%0' or doc_id like '%2'", reason="even")
        case "delete long":
            db.filter(where="doc_id like '%long'", reason="long")
        case "undelete even":
            if "even" in db.view().chunks.tombstones.reasons:
                db.undelete("even")
        case "screen":
            if db.testsets():
                db.dedup()  # shards that came since
            else:
                path = write_documents(folder / "test.jsonl", {"t": made_text(_TEST_ITEM, 60)})
                db.dedup([path], name="test")


@dataclass(frozen=True)
class _Rows:
    rows: Int64Array
    ids: Int64Array
    distances: Float32Array


def _table(db: Database, layout: Layout, exclude: tuple[str, ...], *, exact: bool) -> _Rows:
    name = f"{'exact' if exact else 'lists'}-{len(exclude)}"
    ranges = {} if exact else {"list_ranges": layout.list_ranges}
    db.neighbours(table=name, k=K, spare_neighbours=WIDTH - K, exact=exact, exclude=exclude, recall=0.7, **ranges)
    table = db.neighbour_table(name)
    rows = table.rows()
    return _Rows(rows, *table.read(rows))


def _compare_with_brute_force(db: Database, table: _Rows, exclude: tuple[str, ...]) -> None:
    """The nearest live rows of each row, of other documents and perhaps other contents; equal texts are in the order of ids."""
    view = db.view()
    chunks = view.chunks
    spans = [record.span for record in chunks.ranges]
    ids = np.concatenate([span.first_chunk + np.flatnonzero(chunks.live_mask(*span)) for span in spans])
    ids = ids[np.abs(view.vectors("default", ids)).sum(axis=1) > 0]
    np.testing.assert_array_equal(ids, table.rows)
    vectors = view.vectors("default", ids).astype(np.float64)
    distances = -vectors @ vectors.T
    keys = [chunks.document_ids(ids)] + ([chunks.content_keys(ids)] if "content" in exclude else [])
    for key in keys:
        distances[key[:, None] == key[None, :]] = np.inf
    nearest = np.sort(distances, axis=1)[:, :K]
    nearest = np.pad(nearest, ((0, 0), (0, K - nearest.shape[1])), constant_values=np.inf)
    np.testing.assert_array_equal(table.ids >= 0, np.isfinite(nearest))
    np.testing.assert_allclose(table.distances, nearest, atol=1e-5)
    positions = np.minimum(np.searchsorted(ids, table.ids), len(ids) - 1)
    found = np.where(table.ids >= 0, np.take_along_axis(distances, positions, axis=1), np.inf)
    np.testing.assert_allclose(found, nearest, atol=1e-5)  # the neighbours, and not only distances
    for row in table.ids:
        assert len(set(row[row >= 0])) == (row >= 0).sum()
    is_tie = table.distances[:, 1:] == table.distances[:, :-1]
    assert (np.diff(table.ids, axis=1)[is_tie & (table.ids[:, 1:] >= 0)] > 0).all()
