"""Updating a database from an old version of a real collection to a new one equals building it from the new one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from real_corpora import unpack

import retrodb
from retrodb.config import dump_toml
from retrodb.database import Database
from retrodb.errors import EXIT_OK, EXIT_REJECTS
from retrodb.format.parquet import read_table
from retrodb.maintain.update.command import UpdateResult

from .update_model import CLOCK, live_documents

pytestmark = pytest.mark.corpora
QUERIES = ["accessibility of web forms", "type hints for generics", "plain language", "how releases are made"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("tokenizers.tar.zst", tmp_path_factory.mktemp("tokenizers")) / "gpt2"


@pytest.mark.parametrize(
    ("collection", "front_matter"),
    [pytest.param("peps", "text", marks=pytest.mark.soak), ("digitalgov", "text"), ("digitalgov", "metadata")],
)
def test_an_update_with_mirror_equals_a_new_build(
    tmp_path: Path, gpt2: Path, collection: str, front_matter: str, record_property: Callable[[str, object], None]
) -> None:
    folder = unpack(f"{collection}.old-new.tar.zst", tmp_path)
    site = tmp_path / "site"
    (folder / "old").rename(site)
    recipe = tmp_path / "recipe.toml"
    table = {"inputs": ["site"], "max_reject_rate": 0.1, "front_matter": front_matter}
    recipe.write_text(
        dump_toml({"sources": {"site": table}, "index": {"factory": "Flat"}, "neighbours": {"self": {"k": 2}}})
    )
    updated = retrodb.create(tmp_path / "updated", tokenizer=str(gpt2), encoder="hashing:64", clock=CLOCK)
    assert updated.update(recipe, mirror=True).exit_code in (EXIT_OK, EXIT_REJECTS)
    known = embedded_texts(updated)
    site.rename(tmp_path / "away")
    (folder / "new").rename(site)
    result, update_s = timed(lambda: updated.update(recipe, mirror=True))
    fresh = retrodb.create(tmp_path / "fresh", tokenizer=str(gpt2), encoder="hashing:64", clock=CLOCK)
    _, build_s = timed(lambda: fresh.update(recipe, mirror=True))
    ratio = f"{update_s:.1f} s / {build_s:.1f} s = {update_s / build_s:.2f}"
    record_property("update / rebuild", ratio)
    print(f"{collection}, front matter as {front_matter}: update / rebuild {ratio}")

    assert live_documents(updated) == live_documents(fresh)
    assert chunk_texts(updated) == chunk_texts(fresh)
    for got, expected in zip(search(updated), search(fresh), strict=True):
        assert got == expected
    [counts] = [step.counts for step in result.steps if step.stage == "embed"]
    unseen = [rows for text, rows in (embedded_texts(updated) - known).items() if text not in known]
    assert counts["chunks"] - counts["reused"] == sum(unseen)
    assert updated.update(recipe, mirror=True).outcome == "nothing new"


def timed(run: Callable[[], UpdateResult]) -> tuple[UpdateResult, float]:
    started = time.monotonic()
    result = run()
    assert result.exit_code in (EXIT_OK, EXIT_REJECTS), result  # a page of the old version is rejected
    return result, time.monotonic() - started


def chunk_texts(db: Database) -> Counter[str]:
    view = db.view()
    found: Counter[str] = Counter()
    for record in view.chunks.ranges:
        ids = record.first_chunk + view.chunks.live_mask(record.first_chunk, record.num_chunks).nonzero()[0]
        found.update(view.chunks.texts(ids))
    return found


def embedded_texts(db: Database) -> Counter[str]:
    """The texts that have a vector, of live and of deleted chunks, and how many chunks have each."""
    chunks, found = db.view().chunks, Counter[str]()
    for record in db.view().manifest.files("vectors", "default"):
        table = read_table(chunks.files.open(chunks.file("chunks", record.first_chunk, record.num_chunks)), ["text"])
        found.update(table.column("text").take(chunks.files.rows(record).present).to_pylist())
    return found


def search(db: Database) -> list[list[tuple[float, str]]]:
    """Scores and texts, without the last ties: which of equals come in follows from the chunk ids."""
    found = [[(round(hit.score, 4), hit.text) for hit in hits] for hits in db.search(QUERIES, k=10)]
    return [sorted(hit for hit in hits if hit[0] > hits[-1][0]) for hits in found]
