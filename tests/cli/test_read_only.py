"""Dry runs where nothing can be written: they say what the same dry run says elsewhere, and leave no file."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb.facade import base

from .conftest import ok


def id_list(corpus: Path) -> Path:
    """A file with the id of the first document."""
    path = corpus.with_name("ids.txt")
    path.write_text(json.loads(corpus.read_text().splitlines()[0])["id"] + "\n")
    return path


COMMANDS: dict[str, Callable[[Path, Path], tuple[str | Path, ...]]] = {
    "ingest": lambda database, corpus: ("ingest", database, corpus, "--source", "again", "--max-reject-rate", "1"),
    "ingest with two workers": lambda database, corpus: (
        *("ingest", database, corpus, "--source", "again", "--max-reject-rate", "1"),
        *("--workers", "2"),
    ),
    "dedup": lambda database, corpus: ("dedup", database, "--against", corpus, "--name", "test-set"),
    "near-duplicates": lambda database, _: ("dedup", database, "--near-duplicates"),
    "filter": lambda database, _: ("filter", database, "--where", "num_chunks > 1"),
    "filter ids": lambda database, corpus: ("filter", database, "--doc-ids", id_list(corpus), "--reason", "x"),
    "compact": lambda database, _: ("compact", database, "--min-deleted", "0"),
    "purge": lambda database, corpus: ("purge", database, "--doc-ids", id_list(corpus)),
    "tag": lambda database, _: ("tag", database, "--name", "long", "--regex", "a"),
    "queries add": lambda database, corpus: ("queries", "add", database, corpus, "--name", "more"),
    "index": lambda database, _: ("index", database, "--retrain"),
    "neighbours": lambda database, _: ("neighbours", database, "--table", "another", "--where", "num_chunks > 1"),
    "repair": lambda database, _: ("neighbours", database, "--repair"),
}


def _files(root: Path) -> dict[Path, int]:
    """All but locks, which a read-only file system does without."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if "locks" not in path.parts and path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_on_a_read_only_file_system(
    name: str, built: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Path(shutil.copytree(built, tmp_path / "database"))
    expected = ok(*COMMANDS[name](database, corpus), "--dry-run", "--json")
    shutil.rmtree(database)  # a result may name the path, so the copy for the comparison has the same
    shutil.copytree(built, database)

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(base, "is_read_only", lambda storage: True)
    before = _files(database)
    done = ok(*COMMANDS[name](database, corpus), "--dry-run", "--json")
    assert done.rows == expected.rows
    assert _files(database) == before
    assert not list(scratch.iterdir())


def test_embed_and_exposure_on_a_read_only_file_system(
    built: Path, testset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, scratch = Path(shutil.copytree(built, tmp_path / "database")), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(base, "is_read_only", lambda storage: True)
    before = _files(database)
    planned = ok("embed", database, "--space", "more", "--encoder", "hashing:8", "--dry-run", "--json").row
    assert planned["num_chunks"] > 0
    assert ok("exposure", database, "--testset", testset.name.partition(".")[0], "--json").row["num_rows"] > 0
    assert _files(database) == before
    assert not list(scratch.iterdir())
