"""A database with every length that a document can go wrong at, and what its table says of every row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.database import Database
from retrodb.view.neighbour_table import NeighbourTable

LENGTHS = (1, 63, 64, 65, 128, 129)
K = 18  # more than some rows find: they are starved


@dataclass(frozen=True)
class Truth:
    """What a reader has to find, from the database itself."""

    table: NeighbourTable

    def tokens(self, chunk_id: int) -> list[int]:
        """Of a live chunk; none for -1 and deleted ones."""
        return own_tokens(self.table.view.chunks, chunk_id)

    def row_tokens(self, row: int) -> list[int]:
        """Of a row of the query set."""
        return own_tokens(self.table.view.query_set(self.table.query_set), row)

    def neighbours(self, row: int) -> list[tuple[list[int], list[int]]]:
        """Tokens of each neighbour and of its continuation; both empty where there is none."""
        if not self.table.view.query_set(self.table.query_set).is_live(np.array([row]))[0]:
            return [([], [])] * self.table.k
        [ids] = self.table.read(np.array([row]))[0].tolist()
        following = self.table.view.chunks.continuation(np.array(ids)).tolist()
        return [(self.tokens(i), self.tokens(f)) for i, f in zip(ids, following, strict=True)]


def own_tokens(chunks, chunk_id: int) -> list[int]:  # type: ignore[no-untyped-def]
    batch = chunks.gather_tokens(np.array([chunk_id]))
    return batch.tokens[0, : batch.lengths[0]].tolist()


def live_ids(database: Database) -> list[int]:
    """All live chunks, ascending: their order in every export that has places."""
    chunks = database.view().chunks
    return np.flatnonzero(chunks.live_mask(0, chunks.end)).tolist()


def text_of(tokenizer: Path, num_tokens: int, seed: int) -> str:
    """Made words of exactly so many tokens."""
    made = resolve_tokenizer(tokenizer)
    for attempt in range(1000):
        tokens = made.encode_batch([made_text(seed + 1000 * attempt, 2 * num_tokens + 2)]).tokens
        text = made.decode(tokens[:num_tokens].tolist())
        if len(made.encode_batch([text]).tokens) == num_tokens:
            return text
    raise AssertionError(f"no text of {num_tokens} tokens")


@pytest.fixture(scope="session")
def source_texts(made_tokenizer: Path) -> dict[str, str]:
    return {f"{n}-{copy}": text_of(made_tokenizer, n, 10 * n + copy) for n in LENGTHS for copy in range(2)}


@pytest.fixture(scope="session")
def exportable(
    tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path, source_texts: dict[str, str]
) -> Database:
    """A database of text and key-value documents with a table, some of whose neighbours were deleted later. Export it only."""
    folder = tmp_path_factory.mktemp("exportable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODB_CACHE_DIR", str(folder / "cache"))
        return build(folder, made_tokenizer, source_texts)


@pytest.fixture
def make_exportable(exportable: Database, tmp_path: Path) -> Callable[[], Database]:
    """Makes a copy of it for a test to change."""
    return lambda: retrodb.open(shutil.copytree(exportable.path, tmp_path / "db"))


def build(folder: Path, tokenizer: Path, texts: dict[str, str]) -> Database:
    database = retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder="hashing:32")
    records = [{"id": name, "text": text, "license": "CC0-1.0"} for name, text in texts.items()]
    (folder / "made.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    database.ingest([folder / "made.jsonl"], source="made")
    pairs = [{"id": f"q{i}", "key": made_text(i + 50, 9 + 20 * i), "value": made_text(i + 90, 50)} for i in range(3)]
    (folder / "pairs.jsonl").write_bytes(b"".join(orjson.dumps(pair) + b"\n" for pair in pairs))
    database.ingest([folder / "pairs.jsonl"], source="pairs", key_field="key", value_field="value")
    exam = {f"exam-{n}": text_of(tokenizer, n, 77 + n) for n in LENGTHS}
    database.add_queries("exam", [write_documents(folder / "exam.jsonl", exam)])
    database.embed()
    database.index()
    database.neighbours(k=K, spare_neighbours=2)
    database.neighbours(queries="exam", k=3, spare_neighbours=0)
    remove(database, folder, {"gone": texts["128-1"]}, "document")
    remove(database, folder, {"cut": texts["129-0"][:200]}, "chunk")
    return database


def remove(database: Database, folder: Path, texts: dict[str, str], level: str) -> None:
    """Delete what these texts touch."""
    name = "-".join(texts)
    rule = "jaccard>=0.8" if level == "document" else "containment>=0.5"
    file = write_documents(folder / f"{name}.test.jsonl", texts)
    database.dedup([file], name=name, level=level, rule=rule)
