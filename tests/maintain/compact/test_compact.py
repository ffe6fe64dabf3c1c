"""Compaction drops deleted rows and changes no answer of readers or of later stages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_storage import Crash, FaultyStorage
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.engine.run import open_run
from retrodb.format.kinds import TABLE_KINDS
from retrodb.maintain.compact.command import run_compact
from retrodb.maintain.compact.policy import ShardState, choose_compactions
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.storage import LocalStorage
from retrodb.view.tombstones import tombstone
from retrodb.view.view import SELF

Make = Callable[..., Database]


def delete(database: Database, names: list[str], reason: str) -> None:
    database.filter(doc_ids=names, reason=reason)


def answers(database: Database) -> dict[str, Any]:
    """All that readers can see of the live documents."""
    view = database.view()
    ids = np.arange(view.snapshot.next_chunk)
    live = ids[view.chunks.is_live(ids)]
    table = database.neighbour_table()
    rows = table.rows()
    query = view.vectors("default", live[:5]).astype(np.float32)
    sql = "select source, doc_id, first_chunk, num_tokens from documents where live order by first_chunk"
    chunks = "select chunk_id, first_chunk, position, role, num_tokens, text from chunks where live order by chunk_id"
    return {
        "live": live.tolist(),
        "texts": view.chunks.texts(live),
        "next": view.chunks.continuation(live).tolist(),
        "tokens": view.chunks.gather_tokens(live).tokens.tolist(),
        "lengths": view.chunks.lengths(live).tolist(),
        "documents": view.chunks.document_ids(live).tolist(),
        "content": view.chunks.content_keys(live).tolist(),
        "keys": live[view.embeddable_mask(0, view.snapshot.next_chunk)[live]].tolist(),
        "vectors": view.vectors("default", live).tolist(),
        "search": [[(hit.chunk_id, hit.score, hit.continuation) for hit in own] for own in database.search(query, k=4)],
        "rows": rows.tolist(),
        "table": [each.tolist() for each in table.read(rows)],
        "sql": database.sql(sql).rows,
        "chunks": database.sql(chunks).rows,
    }


def built(make: Make, tmp_path: Path, num_shards: int = 3, per_shard: int = 6) -> Database:
    """Shards of one source, every stage run."""
    database = make({})
    for shard in range(num_shards):
        documents = {f"{shard}-{n}": made_text(100 * shard + n, 60 + 70 * (n % 3)) for n in range(per_shard)}
        database.ingest([write_documents(tmp_path / f"{shard}.jsonl", documents)], source="made")
    database.embed()
    database.index()
    database.neighbours(k=2, spare_neighbours=1, exact=True)
    return database


def test_compaction_changes_no_answer_and_drops_deleted_rows(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    delete(database, ["0-1", "0-2", "1-0", "2-5"], "toxic")
    before, live = answers(database), database.stats().num_live_chunks
    result = database.compact()
    assert result.num_dropped_documents == 4
    assert answers(database) == before
    stats = database.stats()
    assert (stats.num_live_chunks, stats.num_shards) == (live, 1)
    assert stats.num_chunks == live
    assert database.check(read_data=True).damaged == ()
    assert database.compact().ranges == ()


def test_every_stage_runs_after_a_compaction(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    database.near_duplicates()
    delete(database, ["0-1", "1-0", "1-1", "1-2"], "toxic")
    database.compact()
    before = answers(database)
    assert database.embed().num_chunks == 0
    assert database.index().num_vectors == 0
    assert answers(database) == before
    ids = database.view().snapshot.next_chunk
    again = {f"1-{n}": made_text(100 + n, 60 + 70 * (n % 3)) for n in range(6)} | {"new": made_text(999, 100)}
    result = database.ingest([write_documents(tmp_path / "again.jsonl", again)], source="made")
    assert (result.num_added, result.num_unchanged, result.num_superseded) == (1, 6, 0), (
        "filtered documents stay deleted"
    )
    assert database.view().shards.first_chunk[-1] == ids, "new ids follow the last one that was given"
    changed = {"1-0": made_text(2000, 90), "1-3": made_text(2001, 90)}
    result = database.ingest([write_documents(tmp_path / "changed.jsonl", changed)], source="made")
    assert result.num_superseded == 2
    assert database.embed().num_chunks > 0
    database.index()
    database.neighbours(k=2, spare_neighbours=1, exact=True, table="again")
    database.dedup([write_documents(tmp_path / "test.jsonl", {"x": made_text(103, 60), "y": made_text(101, 130)})])
    assert database.stats().num_deleted_chunks_by_reason["leak:test"] > 0
    assert database.near_duplicates().num_hashed_documents > 0
    assert database.leaks("test")
    assert database.exposure("test").num_rows > 0
    database.compact(min_deleted=0)
    assert database.check(read_data=True).damaged == ()
    stats = database.stats()
    assert stats.num_chunks == stats.num_live_chunks
    assert [hit.doc_id for hit in database.search([made_text(2000, 60)], k=1)[0]] == ["1-0"]


def test_a_document_with_some_deleted_chunks_keeps_the_others(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path, 1)
    view = database.view()
    first, count = view.chunks.ranges[0].first_chunk, view.chunks.ranges[0].num_chunks
    layout = view.chunks.layout(view.chunks.ranges[0])
    document = int(np.argmax(layout.num_chunks))
    row = int(layout.first_row[document])
    run = open_run(view.storage, "dedup", {"chunk": row})
    transaction = Transaction.of_run(database._context, view, run, "dedup", conflict_keys.filtering())
    transaction.add_tombstones([tombstone(first, count, "leak:x", np.array([row]))])
    transaction.commit()
    before = answers(database)
    result = database.compact(min_deleted=0)
    assert (result.num_dropped_chunks, result.num_dropped_documents) == (1, 0)
    assert answers(database) == before
    again = database.ingest([tmp_path / "0.jsonl"], source="made", metadata_fields=[])
    assert (again.num_added, again.num_unchanged) == (0, 6), "the document is still in the database"


def test_a_removed_document_can_be_ingested_again_after_a_compaction(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"a": made_text(1, 100), "b": made_text(2, 100)})
    database.ingest([write_documents(tmp_path / "1.jsonl", {"a": made_text(1, 100)})], source="made", mirror=True)
    database.compact()
    result = database.ingest([write_documents(tmp_path / "2.jsonl", {"b": made_text(2, 100)})], source="made")
    assert (result.num_added, result.num_unchanged) == (1, 0)


def test_compaction_keeps_the_row_numbers_of_held_out_documents(make_database: Make, tmp_path: Path) -> None:
    database = make_database({})
    documents = {str(n): made_text(n, 100) for n in range(12)}
    database.ingest([write_documents(tmp_path / "1.jsonl", documents)], source="made", holdout=0.5)
    database.embed()
    rows = database.view().query_set("heldout").end
    database.ingest(
        [write_documents(tmp_path / "2.jsonl", {str(n): made_text(n + 100, 100) for n in range(12)})],
        source="made", holdout=0.5,
    )  # fmt: skip
    held = database.view().query_set("heldout")
    live = np.flatnonzero(held.is_live(np.arange(held.end)))
    texts = held.texts(live)
    result = database.compact()
    assert {each.query_set for each in result.ranges} == {SELF, "heldout"}
    held = database.view().query_set("heldout")
    assert np.flatnonzero(held.is_live(np.arange(held.end))).tolist() == live.tolist()
    assert (live >= rows).all()
    assert held.texts(live) == texts
    assert database.embed().num_query_rows > 0
    assert database.check(read_data=True).damaged == ()


def test_a_database_with_all_documents_deleted_can_grow_again(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path, 1, 3)
    delete(database, ["0-0", "0-1", "0-2"], "toxic")
    database.compact()
    stats = database.stats()
    assert (stats.num_chunks, stats.num_documents, stats.num_deleted_chunks_by_reason.get("toxic")) == (0, 0, 3)
    assert database.sql("select count(*) from documents").rows == [(0,)]
    assert database.embed().num_chunks == 0
    database.near_duplicates()
    database.dedup([write_documents(tmp_path / "test.jsonl", {"x": made_text(103, 60)})])
    result = database.ingest([write_documents(tmp_path / "more.jsonl", {"n": made_text(77, 100)})], source="made")
    assert result.num_added == 1
    database.embed()
    database.index()
    database.neighbours()
    assert database.check(read_data=True).damaged == ()


def test_bytes_do_not_depend_on_workers_or_interruption(make_database: Make, tmp_path: Path) -> None:
    database = built(make_database, tmp_path)
    delete(database, ["0-1", "1-0"], "toxic")
    number = database.view().snapshot.number

    def compacted() -> dict[str, Any]:
        run_compact(database._context)
        kept = [file for file in database.view().manifest.all_files() if file.kind not in TABLE_KINDS]
        return {file.path: file.digest for file in kept if file.kind != "tombstones"}

    first = compacted()
    database.restore(number)
    assert compacted() == first


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), st.dictionaries(st.integers(0, 7), st.integers(0, 2), min_size=1, max_size=4)),
        st.tuples(st.just("filter"), st.integers(0, 7)),
        st.tuples(st.just("leak"), st.integers(0, 7)),
        st.tuples(st.just("embed"), st.none()),
        st.tuples(st.just("compact"), st.sampled_from([0.0, 0.1, 0.5])),
    ),
    min_size=2,
    max_size=5,
)
UNIQUE = count()


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
@example(steps=[("ingest", {0: 0, 5: 1}), ("leak", 5)])  # the first chunks of a document are deleted, the others stay
def test_compactions_in_a_history_change_no_answer(
    steps: list[tuple[str, Any]], make_database: Make, tmp_path: Path
) -> None:
    number = next(UNIQUE)
    twins = [make_database({"kept": made_text(9999, 140)}, f"{number}-{which}") for which in "ab"]
    for at, (step, value) in enumerate([*steps, ("embed", None), ("compact", 0.0)]):
        for which, database in enumerate(twins):
            if step == "ingest":
                documents = {f"d{n}": made_text(10 * n + version, 40 + 50 * version) for n, version in value.items()}
                database.ingest([write_documents(tmp_path / f"{number}-{at}.jsonl", documents)], source="made")
            elif step == "filter":
                database.filter(doc_ids=[f"d{value}"], reason=f"r{at}")
            elif step == "leak":
                items = {"x": made_text(10 * value + 1, 60)}
                file = write_documents(tmp_path / f"{number}-{at}-test.jsonl", items)
                database.dedup([file], name=f"t{at}", rule="containment>=0.5", level="chunk")
            elif step == "embed":
                database.embed()
                database.index()
            elif which == 0:
                database.compact(min_deleted=value)
    for database in twins:
        database.neighbours(k=2, spare_neighbours=1, exact=True)
    assert answers(twins[0]) == answers(twins[1])
    shown = [database.diff(1, database.view().snapshot.number, documents=True).documents for database in twins]
    assert [[(d.doc_id, d.change) for d in each] for each in shown[:1]] == [
        [(d.doc_id, d.change) for d in each] for each in shown[1:]
    ]
    stats = twins[0].stats()
    assert stats.num_chunks == stats.num_live_chunks
    assert twins[0].check(read_data=True).damaged == ()


def shard(rows: int, deleted: int = 0, source: str = "a", first: int = 0) -> ShardState:
    return ShardState(source, first, rows, rows, deleted)


def placed(*shards: ShardState) -> list[ShardState]:
    """Adjacent shards."""
    starts = np.cumsum([0, *(each.num_chunks for each in shards)])
    return [replace(each, first_chunk=int(start)) for each, start in zip(shards, starts, strict=False)]


def test_the_policy_rewrites_shards_with_deleted_rows_and_joins_small_ones() -> None:
    assert choose_compactions([], 0.1) == []
    assert choose_compactions([shard(100)], 0.1) == []
    assert choose_compactions([shard(100, 9)], 0.1) == []
    assert choose_compactions([shard(100, 10)], 0.1) == [range(1)]
    assert choose_compactions(placed(shard(50), shard(50)), 0.1) == [range(2)]
    assert choose_compactions(placed(shard(50), shard(50, source="b")), 0.1) == []
    assert choose_compactions(placed(shard(9000), shard(5), shard(5)), 0.1) == [range(1, 3)], "not for ten rows"
    assert choose_compactions(placed(shard(60), shard(60), shard(60)), 0.1, max_chunks=120) == [range(2)]
    apart = [shard(50), shard(50, first=60)]
    assert choose_compactions(apart, 0.1) == [], "ids between them belong to no shard"
    assert choose_compactions([shard(100, 0, first=5), shard(100, 100, first=105)], 0.1) == [range(1, 2)]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from("ab")), max_size=30),
    limit=st.integers(1, 200),
)
def test_the_policy_joins_only_adjacent_shards_of_one_source(sizes: list[tuple[int, int, str]], limit: int) -> None:
    shards = placed(*(shard(max(n, d), min(n, d), source) for n, d, source in sizes))
    chosen = choose_compactions(shards, 0.1, limit)
    indices = [index for run in chosen for index in run]
    assert indices == sorted(set(indices))
    for run in chosen:
        joined = [shards[index] for index in run]
        assert len({each.source for each in joined}) == 1
        assert len(joined) == 1 or joined[-1].first_chunk + joined[-1].num_chunks - joined[0].first_chunk <= limit
        kept = [each.num_rows - each.num_deleted for each in joined]
        assert len(joined) == 1 or 2 * max(kept) <= sum(kept)
    due = {index for index, each in enumerate(shards) if 0 < each.num_deleted >= 0.1 * each.num_rows}
    assert due <= set(indices)


FRACTIONS = [0.5, 0.8, *(pytest.param(at / 40, marks=pytest.mark.soak) for at in range(40))]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_killed_compaction_run_again_gives_the_same_answers(
    fraction: float, make_database: Make, tmp_path: Path
) -> None:
    database = built(make_database, tmp_path, 2, 3)
    delete(database, ["0-1", "1-0"], "toxic")
    before = answers(database)
    copies = [LocalStorage(Path(shutil.copytree(database.path, tmp_path / name))) for name in ("whole", "killed")]
    counting = FaultyStorage(copies[0])
    Database(counting).compact()
    with pytest.raises(Crash):
        Database(FaultyStorage(copies[1], int(fraction * len(counting.operations)), "crash")).compact()
    killed = Database(copies[1])
    assert answers(killed) == before
    killed.compact()
    assert answers(killed) == before
    assert killed.stats().num_chunks == killed.stats().num_live_chunks
    assert killed.check(read_data=True).damaged == ()
