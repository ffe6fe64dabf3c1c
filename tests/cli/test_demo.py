"""The demo, cut short: every stage runs, an interrupted one is continued, and another database does not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retrodb import errors
from retrodb.corpus.stdlib_docs import stdlib_documents
from retrodb.memory import PROCESS_MEMORY

from .conftest import ok, run

SMALL = ["--encoder", "hashing:32", "--limit", 8, "--steps", 1, "--workers", 1]
STAGES = [
    "documents",
    "tokenizer",
    "init",
    "ingest",
    "dedup",
    "queries",
    "embed",
    "index",
    "neighbours",
    "validate",
    "export",
]


@pytest.fixture(autouse=True, scope="module")
def _rendered_once() -> Iterator[None]:
    """Rendering the documentation takes seconds, and gives the same every time."""
    documents = list(stdlib_documents())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrodb.maintain.update.demo.stdlib_documents", lambda: documents)
        yield


def test_the_demo_runs_every_stage_and_shows_neighbours(tmp_path: Path) -> None:
    done = ok("demo", tmp_path / "demo", *SMALL, "--json")
    *stages, result = done.rows
    assert [row["stage"] for row in stages] == STAGES
    assert {row["message_type"] for row in stages} == {"demo_stage"}
    assert result["num_documents"] == stages[STAGES.index("ingest")]["counts"]["documents"] == 8
    assert len(result["examples"]) == 3
    assert all(example["neighbours"] for example in result["examples"])
    assert ok("check", tmp_path / "demo", "--read-data", "--json").row["damaged"] == []
    assert any((tmp_path / "demo" / "demo" / "export").rglob("*.parquet"))

    again = ok("demo", tmp_path / "demo", *SMALL).out
    assert "Next steps:" in again
    assert f"retrodb search {tmp_path / 'demo'}" in again


def test_the_demo_does_not_change_another_database(built: Path) -> None:
    before = ok("snapshots", built).out
    done = run("demo", built, *SMALL)
    assert done.code == errors.EXIT_ERROR
    assert "this database was not built by the demo" in done.err
    assert ok("snapshots", built).out == before


def test_the_demo_keeps_the_memory_limit(tmp_path: Path) -> None:
    limit = PROCESS_MEMORY.limit_bytes
    try:
        done = run("demo", tmp_path / "demo", *SMALL, "--memory", "100MiB")
    finally:
        PROCESS_MEMORY.begin(limit)
    assert done.code == errors.EXIT_USAGE
    assert "of memory, and the limit is 100MiB. Give --memory" in done.err
