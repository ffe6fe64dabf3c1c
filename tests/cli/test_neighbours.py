"""`retrodb neighbours`: the default command and its subcommands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb_cli.main import main

from .conftest import document, json_lines, ok, run

Copy = Callable[[Path], Path]


def test_show_prints_a_row_with_its_neighbours(built: Path) -> None:
    shown = ok("neighbours", "show", built, "--row", 0, "--json").row
    assert shown["message_type"] == "shown_row"
    assert shown["row"]["chunk_id"] == 0
    assert len(shown["neighbours"]) == 2
    text = ok("neighbours", "show", built, "--table", "exam", "--row", 0).out
    assert "exam" in text
    assert "1. " in text
    assert run("neighbours", "show", built, "--row", 10**9).code == 2
    assert run("neighbours", "show", built).code == 2


def test_an_edit_changes_what_show_prints_until_it_is_undone(built: Path, fresh: Copy) -> None:
    database = fresh(built)
    ids = [
        each["chunk"]["chunk_id"] for each in ok("neighbours", "show", database, "--row", 0, "--json").row["neighbours"]
    ]
    ban = ("neighbours", "edit", database, "--row", 0, "--ban", ids[0], "--json")
    assert ok(*ban, "--dry-run").row["after"][0] == ids[1]
    assert ok(*ban).row["bans"] == [ids[0]]
    assert f"banned: {ids[0]}" in ok("neighbours", "show", database, "--row", 0).out
    assert ok(*ban, "--undo").row["after"] == ids
    assert run("neighbours", "edit", database, "--row", 0, "--pin", 10**9).code == 2
    assert run("neighbours", "edit", database, "--row", 0).code == 2


def test_repair_brings_all_tables_up_to_date(built: Path, fresh: Copy, tmp_path: Path) -> None:
    database = fresh(built)
    ok("ingest", database, json_lines(tmp_path / "more.jsonl", document(100)), "--source", "more", "--workers", 1)
    ok("embed", database, "--workers", 1)
    ok("index", database, "--workers", 1)
    planned = ok("neighbours", database, "--repair", "--dry-run", "--json").rows
    assert [(each["table"], each["dry_run"], each["num_new_chunks"] > 0) for each in planned] == [
        ("exam", True, True),
        ("self", True, True),
    ]
    refused = run("neighbours", database, "--repair", "--device", "abacus")
    assert (refused.code, "abacus" in refused.err) == (2, True)
    [done] = ok("neighbours", database, "--repair", "--table", "self", "--workers", 1, "--json").rows
    assert done["num_recomputed"] == done["num_new_rows"] > 0
    refused = run("neighbours", database, "--repair", "--k", 5)
    assert refused.code == 2
    assert "Remove --k" in refused.err


def test_the_default_command_has_its_own_help_and_environment(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["neighbours", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: retrodb neighbours [OPTIONS] DB" in text
    assert "retrodb neighbours show" in text
    monkeypatch.setenv("RETRODB_NEIGHBOURS_K", "0")
    assert run("neighbours", built, "--dry-run").code == 2


def test_memory_and_device_reach_the_repair(built: Path) -> None:
    refused = run("neighbours", built, "--repair", "--memory", "1KiB")
    assert (refused.code, "and the limit is 1,024 bytes" in refused.err) == (2, True)
    assert ok("neighbours", built, "--repair", "--memory", "512MiB", "--device", "cpu", "--json").rows
