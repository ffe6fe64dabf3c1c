"""`retrodb export` and the packed query sets of `retrodb queries add`, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import pytest

from .conftest import json_lines, ok, run


def test_an_export_is_written_listed_and_refreshed(
    built: Path, fresh: Callable[[Path], Path], corpus: Path, tmp_path: Path
) -> None:
    database, out = fresh(built), tmp_path / "out"
    before = ok("export", database, "--list", "--json").rows  # of tests that used the database that this is a copy of
    planned = ok("export", database, out, "--to", "arrays", "--dry-run", "--json").row
    assert not out.exists()
    written = ok("export", database, out, "--to", "arrays", "--json").row
    assert (planned["num_files"], planned["num_rows"]) == (written["num_files"], written["num_rows"])
    [listed] = [each for each in ok("export", database, "--list", "--json").rows if each not in before]
    assert (listed["path"], listed["format"], listed["table"]) == (str(out), "arrays", "self")

    text = corpus.read_text().splitlines()[7]
    ok("dedup", database, "--against", json_lines(tmp_path / "late.jsonl", text.encode()), "--name", "late")
    changed = ok("export", "--refresh", out, "--dry-run", "--json").row["changed"]
    assert "tokens.npy" in changed
    refreshed = ok("export", "--refresh", out, "--json").row
    assert refreshed["changed"] == refreshed["must_reopen"] == changed
    assert ok("export", database, "--refresh", out, "--json").row["changed"] == []


def test_a_project_has_a_table_for_each_subset(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("megatron")
    tables = ["--table", "train=self", "--table", "valid=self"]
    arguments = ["export", built, tmp_path / "out", "--to", "megatron", "--seq-length", 64, "--dry-run"]
    planned = ok(*arguments, *tables, "--eval-iters", 1, "--global-batch-size", 2, "--json").row
    assert planned["table"] == "train=self valid=self"
    assert [(counts["subset"], counts["table"]) for counts in planned["subsets"]] == [
        ("train", "self"),
        ("valid", "self"),
    ]
    assert planned["subsets"][1]["num_samples"] == 2
    assert "train with Megatron's split" in ok(*arguments, *tables).out


def test_own_documents_are_packed_as_queries(built: Path, fresh: Callable[[Path], Path]) -> None:
    database = fresh(built)
    planned = ok("queries", "add", database, "--name", "packed", "--sequences", 32, "--dry-run", "--json").row
    packed = ok("queries", "add", database, "--name", "packed", "--sequences", 32, "--json").row
    assert planned["num_documents"] == packed["num_documents"] > 0
    ok("embed", database, "--workers", 1)
    ok("neighbours", database, "--queries", "packed", "--exclude", "sequence", "--workers", 1)


def test_documents_are_given_as_arguments_or_options(
    built: Path, fresh: Callable[[Path], Path], tmp_path: Path
) -> None:
    database, file = (
        fresh(built),
        json_lines(tmp_path / "q.jsonl", b'{"id": "1", "text": "which chunks are nearest to this"}'),
    )
    by_place = ok("queries", "add", database, file, "--name", "a", "--json").row
    by_option = ok("queries", "add", database, "--jsonl", file, "--name", "b", "--json").row
    assert by_place["num_documents"] == by_option["num_documents"] == 1
    assert by_place["num_rows"] == by_option["num_rows"] > 0


def test_invalid_arguments_are_usage_errors(built: Path, corpus: Path, tmp_path: Path) -> None:
    for arguments in (
        ["export"],
        ["export", built],
        ["export", built, tmp_path / "out", "--refresh", tmp_path / "out"],
        ["export", "--refresh", tmp_path / "out", "--to", "arrays"],
        ["export", "--refresh", tmp_path / "none"],
        ["export", built, tmp_path / "out", "--to", "scroll"],
        ["export", built, tmp_path / "out", "--to", "arrays", "--seq-length", "64"],
        ["export", built, tmp_path / "out", "--to", "megatron", "--eval-interval", "0"],
        ["export", built, tmp_path / "out", "--to", "megatron", "--table", "train=self", "--table", "train=self"],
        ["export", built, tmp_path / "out", "--to", "megatron", "--table", "train=self", "--table", "self"],
        ["export", built, tmp_path / "out", "--table", "train=self"],
        ["export", built, tmp_path / "out", "--table", "self", "--table", "self"],
        ["export", "--refresh", tmp_path / "out", "--contexts", "ctxs"],
        ["queries", "add", built, "--name", "q"],
        ["queries", "add", built, corpus, "--name", "q", "--sequences", 32],
        ["queries", "add", built, "--name", "q", "--megatron", "x"],
        ["queries", "add", built, "--name", "q", "--split", "1,0,0"],
    ):
        done = run(*arguments)
        assert done.code == 2, (arguments, done.err)
    missing = run(
        *("queries", "add", built, "--name", "q", "--megatron", tmp_path / "no"),
        *("--seq-length", 32, "--train-samples", 4, "--json"),
    )
    assert missing.code == 1
    assert "no such file" in missing.errors[-1]["message"]


def test_an_index_is_written_as_one_file_for_faiss(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.faiss"
    planned = ok("index", built, "--export-faiss", out, "--dry-run", "--json").row
    assert planned["dry_run"]
    assert not out.exists()
    written = ok("index", built, "--export-faiss", out, "--json").row
    assert faiss.read_index(str(out)).ntotal == written["num_vectors"] <= planned["num_vectors"]
    again = run("index", built, "--export-faiss", out)
    assert again.code != 0
    assert "exists" in again.err
    mixed = run("index", built, "--export-faiss", tmp_path / "other", "--retrain")
    assert mixed.code == 2
    assert "--export-faiss" in mixed.err
