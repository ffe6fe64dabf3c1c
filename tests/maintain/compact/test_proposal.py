"""An update proposes a compaction where it helps, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.config import dump_toml
from retrodb.database import Database
from retrodb.maintain.compact.proposal import propose_compaction
from retrodb_cli.render_update import update_result

NOTE = "20 of 20 shards hold fewer than 1,024 chunks: run 'retrodb compact DB'"


@pytest.fixture(autouse=True)
def _one_document_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", 1)


def database_of(folder: Path, tokenizer: Path) -> Database:
    return retrodb.create(folder / "db", tokenizer=str(tokenizer), encoder="hashing:32")


def documents(seeds: range) -> dict[str, str]:
    return {f"d{seed}": made_text(seed, 10) for seed in seeds}


def test_an_update_proposes_a_compaction_while_small_shards_dominate(tmp_path: Path, made_tokenizer: Path) -> None:
    database = database_of(tmp_path, made_tokenizer)
    write_documents(tmp_path / "made.jsonl", documents(range(20)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_toml({"sources": {"made": {"inputs": ["made.jsonl"]}}}))
    result = database.update(recipe)
    assert result.notes == (NOTE,)
    assert update_result(result).endswith(f"\n{NOTE}")
    database.compact()
    again = database.update(recipe)
    assert again.notes == ()
    assert "compact" not in update_result(again)


def test_a_few_small_shards_are_no_reason_to_compact(tmp_path: Path, made_tokenizer: Path) -> None:
    database = database_of(tmp_path, made_tokenizer)
    database.ingest([write_documents(tmp_path / "made.jsonl", documents(range(15)))], source="made")
    assert propose_compaction(database.view()) == ""


def test_no_compaction_is_proposed_that_would_join_nothing(tmp_path: Path, made_tokenizer: Path) -> None:
    """Adjacent shards of different sources are never joined."""
    database = database_of(tmp_path, made_tokenizer)
    for seed in range(16):
        path = write_documents(tmp_path / f"{seed}.jsonl", documents(range(seed, seed + 1)))
        database.ingest([path], source=f"source{seed % 2}")
    assert propose_compaction(database.view()) == ""
    assert not database.compact(dry_run=True).ranges
