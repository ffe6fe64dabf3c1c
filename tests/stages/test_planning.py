"""Planning reads records of files, and neither chunks nor documents: counted where storage is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from faulty_storage import FaultyStorage
from made_documents import made_text, write_documents

import retrodb
from retrodb.config import IngestParams
from retrodb.database import Database
from retrodb.engine.local import LocalEngine
from retrodb.stages.context import Context
from retrodb.stages.embed.embed_plan import plan_embed
from retrodb.stages.embed.space_encoder import EncoderHardware
from retrodb.stages.ingest.plan import plan_ingest
from retrodb.store.storage import LocalStorage

SMALL, LARGE = 2, 16  # shards: the same database at 1x and at 8x
RECORDS = {"snapshots", "manifests", "rows", "retrodb.toml", "tokenizer.json", "tombstones", "heads"}
"""What planning may read of any database."""


class Counted:
    """A database with one small shard for each document, all embedded, and what is read of it."""

    def __init__(self, folder: Path, tokenizer: Path, num_shards: int) -> None:
        self.folder, self.num_shards = folder / str(num_shards), num_shards
        self.folder.mkdir()
        retrodb.create(self.folder / "db", tokenizer=str(tokenizer), encoder="hashing:32")
        self.storage = FaultyStorage(LocalStorage(self.folder / "db"))
        database = Database(self.storage, workers=1)
        # Two chunks, of which the second one is too short for a vector.
        documents = {f"d{number}": made_text(number, 66 + number % 4) for number in range(num_shards)}
        database.ingest([write_documents(self.folder / "in.jsonl", documents)], source="made")
        database.filter(doc_ids=["d0"], reason="bad")
        database.embed()
        assert len(database.view().shards) == num_shards
        self.plan_ingest("other")  # verifies the ids files, as the first command on a machine does
        self.storage.operations.clear()

    def plan_embed(self) -> Counter[str]:
        """The files that planning an embed reads when there is nothing new, by folder."""
        hardware = EncoderHardware("cpu", "auto", None, threads=1, gpus=1)
        plan = plan_embed(Context(self.storage, LocalEngine(1)), {}, hardware)
        assert not plan.pending
        return self.num_reads()

    def plan_ingest(self, doc_id: str) -> Counter[str]:
        """The files that planning an ingest of one document reads, by folder, without those of its own run."""
        file = write_documents(self.folder / f"{doc_id}.jsonl", {doc_id: "a new text"})
        plan = plan_ingest(Context(self.storage, LocalEngine(1)), [str(file)], IngestParams("made"))
        assert plan.result.num_added == 1
        reads = self.num_reads()
        self.storage.operations.clear()
        return reads

    def num_reads(self) -> Counter[str]:
        reads = (path.partition("/")[0] for name, path in self.storage.operations if name in ("read", "local"))
        return Counter(folder for folder in reads if folder != "runs")


@pytest.fixture
def sizes(tmp_path: Path, made_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Counted, Counted]:
    for module in ("shard", "tokenize"):  # every document becomes a shard
        monkeypatch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", 2)
    small, large = (Counted(tmp_path, made_tokenizer, num_shards) for num_shards in (SMALL, LARGE))
    return small, large


def test_planning_an_embed_without_new_chunks_reads_records_only(sizes: tuple[Counted, Counted]) -> None:
    small, large = (database.plan_embed() for database in sizes)
    assert set(large) <= RECORDS
    assert large == small


def test_planning_an_ingest_reads_ids_files_and_records_only(sizes: tuple[Counted, Counted]) -> None:
    small, large = (database.plan_ingest("new") for database in sizes)
    assert set(large) <= RECORDS | {"ids", "inputs"}
    assert (small.pop("ids"), large.pop("ids")) == (SMALL, LARGE), "one small read for each"
    assert large == small
    again = [database.plan_ingest("new") for database in sizes]
    assert "ids" not in again[0] | again[1], "the same run continues"
