"""A database with every kind of file, most of them twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database

from .asked import answers


def build(folder: Path, tokenizer: Path) -> Database:
    """Two sources, questions with answers, a leak, near-duplicates, a query set, held-out documents, tags, filters, tables."""
    database = retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder="hashing:16", chunk_tokens=16)

    def ingest(documents: dict[str, str], source: str, **options: object) -> None:
        database.ingest([write_documents(folder / f"{source}.jsonl", documents)], source=source, **options)

    ingest({f"a{n}": made_text(n, 40 + 7 * n) for n in range(8)}, "first", holdout=0.2)
    ingest({f"b{n}": made_text(20 + n, 50) for n in range(5)} | {"near": made_text(21, 50) + " ban"}, "second")
    ingest({"a1": made_text(90, 30)}, "first")
    (folder / "bad.jsonl").write_text(
        '{"id": "x"}\n' + "".join(f'{{"id": "c{n}", "text": "{made_text(60 + n, 9)}"}}\n' for n in range(99))
    )
    database.ingest([folder / "bad.jsonl"], source="third", max_reject_rate=0.5)
    database.dedup([write_documents(folder / "exam.jsonl", {"q": made_text(22, 50)})])
    database.near_duplicates()
    database.tag("odd", regex="ban")
    database.filter(doc_ids=["b4"], reason="withdrawn")
    database.add_queries(
        "training", [write_documents(folder / "t.jsonl", {"t": made_text(70, 60), "u": made_text(71, 30)})]
    )
    database.embed()
    database.index()
    database.neighbours(k=2, spare_neighbours=1)
    database.neighbours(k=2, queries="training")
    database.filter(doc_ids=["b3"], reason="withdrawn")
    return database


@pytest.fixture(scope="package", autouse=True)
def _small_blocks() -> Iterator[None]:
    """Blocks so small that these small files have several, and files of block digests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrodb.format.blocks.BLOCK_BYTES", 512)
        yield


@pytest.fixture(scope="package")
def whole(_small_blocks: None, tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path) -> Path:
    """The folder of the database. Tests copy it and never change it."""
    return Path(build(tmp_path_factory.mktemp("whole"), made_tokenizer).path)


@pytest.fixture(scope="package")
def truth(whole: Path) -> dict[str, Any]:
    """The answers of the undamaged database."""
    results = answers(retrodb.open(whole))
    assert not {name: error for name, error in results.items() if isinstance(error, Exception)}
    assert retrodb.open(whole).check(read_data=True).damaged == ()
    return results


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a new copy of the database."""

    def fresh() -> Path:
        target = tmp_path / "copy"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(whole, target))

    return fresh
