"""`tag`, `filter`, `undelete` and `check --repair` as people and programs see them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb import errors
from retrodb.database import open

from .conftest import ok, run

Fresh = Callable[[Path], Path]


def test_documents_are_tagged_filtered_and_undeleted(built: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(built)
    (tmp_path / "words.txt").write_text("told\n7:2\n")
    options = ("--name", "told", "--wordlist", tmp_path / "words.txt", "--measure", "count", "--workers", 1)
    assert ok("tag", database, *options, "--dry-run", "--json").row["num_documents"] == 39
    row = ok("tag", database, *options, "--json").row
    assert (row["message_type"], row["num_documents"], row["kind"]) == ("tag_result", 39, "wordlist")
    shown = ok("filter", database, "--where", "told > 6 and metadata->>'year' = '2007'", "--dry-run").out
    assert "would delete 1 document" in shown
    assert "made/d7" in shown
    assert "made: 1" in shown
    row = ok("filter", database, "--where", "told > 6", "--reason", "told", "--json").row
    assert row["num_documents_by_source"] == {"made": row["num_documents"]}
    assert "deleted 0 documents" in ok("filter", database, "--where", "told > 6", "--reason", "told").out
    assert f"revoked for {row['num_documents']} documents" in ok("undelete", database, "--reason", "told").out


def test_document_ids_come_from_a_file_or_stdin(
    built: Path, fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = fresh(built)
    (tmp_path / "ids.txt").write_text('d1\r\n{"id": "d2", "source": "made"}\n\nnone\n')
    done = run("filter", database, "--doc-ids", tmp_path / "ids.txt")
    assert (done.code, "deleted 2 documents" in done.out) == (errors.EXIT_REJECTS, True)
    assert "2 of 3 names are in the database. Unknown: 'none'." in done.err
    assert ok("filter", database, "--doc-ids", tmp_path / "ids.txt", "--ignore-unknown", "--dry-run").code == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"d1\n")))
    assert "1 document" in ok("undelete", database, "--reason", "filter", "--doc-ids", "-").out


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (("filter",), "Give --where"),
        (("filter", "--where", "nothing = 1"), 'Referenced column "nothing" not found'),
        (("filter", "--where", "true", "--reason", "purged"), "belongs to another command"),
        (("undelete", "--reason", "purged"), "cannot be revoked"),
        (("undelete", "--reason", "typo"), "nothing was deleted"),
        (("tag", "--name", "x"), "--wordlist"),
        (("tag", "--name", "X y", "--regex", "a"), "small letters"),
        (("check", "--accept-loss"), "need --repair"),
        (("check", "--workers", "2"), "--workers needs --read-data or --repair"),
        (("check", "--repair", "--memory", "1KiB"), "'repair' needs at least"),
        (("check", "--repair", "--max-duration", "1h"), "--repair reads every file"),
        (("check", "--read-data-subset", "7"), "not a fraction"),
        (("check", "--max-duration", "soon"), "not a duration"),
    ],
)
def test_invalid_options_are_refused(built: Path, command: tuple[str, ...], fault: str) -> None:
    done = run(command[0], built, *command[1:])
    assert (done.code, fault in done.err) == (errors.EXIT_USAGE, True), done.err


def test_a_repair_reports_what_happened_to_each_file(built: Path, fresh: Fresh) -> None:
    database = fresh(built)
    assert ok("check", database, "--repair").out.strip() == "no damage found"
    manifest = open(database).view().manifest
    tokens, vectors, chunks = (manifest.files(kind)[0].path for kind in ("tokens", "vectors", "chunks"))
    (database / tokens).unlink()
    (database / vectors).write_bytes(b"torn")
    assert run("check", database, "--repair", "--dry-run").code == errors.EXIT_DAMAGE
    shown = ok("check", database, "--repair").out
    assert f"{tokens}: rebuilt" in shown
    assert f"{vectors}: removed" in shown
    assert "ran: retrodb embed --space default" in shown
    assert ok("check", database, "--read-data-subset", "50%", "--json").row["damaged"] == []
    (database / chunks).write_bytes(b"torn")
    refused = run("check", database, "--repair")
    assert refused.code == errors.EXIT_DAMAGE
    assert "lost document: made/d9" in refused.out
    assert "--accept-loss" in refused.out
    accepted = ok("check", database, "--repair", "--accept-loss", "--json").row
    assert (accepted["is_loss_accepted"], accepted["commands_to_run"]) == (True, ["ingest --source made"])
    assert ok("check", database, "--read-data", "--json").row["damaged"] == []
