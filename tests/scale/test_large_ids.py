"""A database whose ids begin at 0 and go on beyond 2^33 answers like one without the gap, in every command."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents
from made_up import change, id_of

import retrodb
from retrodb.ann.merge_policy import choose_merges
from retrodb.database import Database
from retrodb.format.records import OP_DROP_SHARD, DropRecord, ShardRecord
from retrodb.format.rows import MAX_ROWS
from retrodb.stages.index.live_parts import parts_of
from retrodb.store.chunk_ids import NewShard
from retrodb.store.commit import commit
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage

GAP_END = (1 << 33) + 5
DOCUMENTS = {f"d{seed}": made_text(seed % 30, 150) for seed in range(40)}  # ten of them are duplicates of others
QUERIES = [made_text(seed, 150)[:300] for seed in range(0, 30, 3)]


def skip_ids(storage: LocalStorage, end: int) -> None:
    """The next chunk gets the id `end`: a shard of one chunk before it comes and goes."""
    shard = NewShard(ShardRecord(id_of("skipped"), "skipped", 1, 1, end - 1), ())
    head = commit(storage, read_head(storage), change(id_of("come"), shards=[shard]))
    commit(storage, head, change(id_of("go"), drops=[DropRecord(OP_DROP_SHARD, first_chunk=end - 1)]))


def build(folder: Path, tokenizer: Path, *, has_gap: bool) -> Database:
    """Half of the documents before the gap and half after it, with an index and a neighbour table."""
    db = retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder="hashing:32")
    names = list(DOCUMENTS)
    for number, chosen in enumerate((names[:20], names[20:])):
        path = write_documents(folder / f"{number}.jsonl", {name: DOCUMENTS[name] for name in chosen})
        if number and has_gap:
            skip_ids(LocalStorage(folder / "db"), GAP_END)
        db.ingest([path], source="made")
        db.embed()
        db.index()
    db.neighbours(k=3)
    return db


class Answers:
    """What a database answers, with ids from which a gap is taken out."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.first = int(db.view().shards.first_chunk[1])  # id after the gap
        self.half = int(db.view().shards.num_chunks[0])

    def without_gap(self, ids: np.ndarray) -> list[int]:
        return np.where(ids >= self.first, ids - self.first + self.half, ids).ravel().tolist()

    def rows(self) -> np.ndarray:
        """All ids."""
        shards = self.db.view().shards
        spans = zip(shards.first_chunk.tolist(), shards.num_chunks.tolist(), strict=True)
        return np.concatenate([np.arange(first, first + count) for first, count in spans])

    def searched(self) -> list[object]:
        hits = [hit for hits in self.db.search(QUERIES, k=4) for hit in hits]
        ids = self.without_gap(np.array([hit.chunk_id for hit in hits]))
        return [ids, [(hit.score, hit.doc_id, hit.position, hit.text) for hit in hits]]

    def table(self) -> list[object]:
        ids, distances = self.db.neighbour_table().read(self.rows())
        return [self.without_gap(ids), distances.tolist()]

    def sql(self) -> list[object]:
        query = "select doc_id, first_chunk, num_chunks from documents where live order by doc_id"
        rows = self.db.sql(query).rows
        return [self.without_gap(np.array([row[1] for row in rows])), [(row[0], row[2]) for row in rows]]

    def all(self) -> list[object]:
        stats = self.db.stats()
        return [self.searched(), self.table(), self.sql(), stats.num_chunks, stats.num_documents]


@pytest.fixture
def both(tmp_path: Path, made_tokenizer: Path) -> list[Answers]:
    answers = []
    for name, has_gap in (("dense", False), ("gap", True)):
        (tmp_path / name).mkdir()
        answers.append(Answers(build(tmp_path / name, made_tokenizer, has_gap=has_gap)))
    assert answers[1].first == GAP_END
    return answers


@pytest.fixture(params=["many parts", "merged parts"])
def is_merged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether index parts before and after the gap are merged: then a range of one part is longer than 2^32."""
    if request.param == "merged parts":
        monkeypatch.setattr("retrodb.stages.index.merge.choose_merges", partial(choose_merges, merge_factor=2))
    return request.param == "merged parts"


def longest_part(db: Database) -> int:
    return max(part.span.num_chunks for part in parts_of(db.view(), "default"))


def test_a_database_beyond_2_to_33_answers_like_a_dense_one(
    is_merged: bool, both: list[Answers], tmp_path: Path
) -> None:
    dense, gap = both
    assert (longest_part(gap.db) > MAX_ROWS) == is_merged
    assert gap.all() == dense.all()
    for number, answers in enumerate(both):
        db = answers.db
        db.filter(doc_ids=["d3", "d25"], reason="unwanted")
        db.ingest([write_documents(tmp_path / f"more-{number}.jsonl", {"more": made_text(5, 150)})], source="made")
        db.embed()
        db.index()
        db.repair_neighbours()
    assert gap.all() == dense.all()
    leaks = write_documents(tmp_path / "test.jsonl", {"t": DOCUMENTS["d26"]})
    leaked = [answers.db.dedup([leaks])[0].num_removed_chunks for answers in both]
    assert leaked[0] == leaked[1] > 0
    near = [answers.db.near_duplicates() for answers in both]
    assert near[0].num_removed_chunks == near[1].num_removed_chunks > 0
    for answers in both:
        answers.db.compact(min_deleted=0.01)
        answers.db.purge(["d7"])
    assert (longest_part(gap.db) > MAX_ROWS) == is_merged
    assert gap.searched() == dense.searched()
    assert gap.sql() == dense.sql()
    assert gap.db.check(read_data=True).damaged == dense.db.check(read_data=True).damaged


@pytest.mark.parametrize("to", ["arrays", "parquet"])
def test_exports_of_a_database_beyond_2_to_33_have_the_same_rows(to: str, both: list[Answers], tmp_path: Path) -> None:
    results = [answers.db.export(tmp_path / f"{number}-{to}", to=to) for number, answers in enumerate(both)]
    assert results[0].num_rows == results[1].num_rows > 0
