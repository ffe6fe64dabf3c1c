"""The commands about space and time: compact, gc, pin, restore, diff, snapshots, purge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb import errors

from .conftest import document, json_lines, ok, run

Fresh = Callable[[Path], Path]


def test_maintenance_commands_work_one_after_another(built: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(built)
    head = ok("snapshots", database, "--json").rows[-1]["snapshot"]
    open_runs = ok("gc", database, "--dry-run", "--json").row["open_runs"]  # of other tests, which tried things out
    changed = {**document(0), "text": "Another text altogether, and a longer one than nothing."}
    ok("ingest", database, json_lines(tmp_path / "more.jsonl", changed), "--source", "made")
    assert ok("pin", database, head, "--name", "run", "--json").row["pinned_snapshot"] == head
    rows = ok("diff", database, head, head + 1, "--json").rows
    assert [(row["message_type"], row["change"], row["num_documents"]) for row in rows] == [
        ("diff_row", "changed", 1),
    ]  # fmt: skip
    listed = ok("diff", database, head, head + 1, "--documents").out
    assert listed.splitlines()[0].split() == [
        "source",
        "doc",
        "id",
        "change",
        "reason",
        "first",
        "chunk",
        "chunks",
    ]
    before = ok("sql", database, "select chunk_id, text from chunks where live order by 1", "--json").out
    planned = ok("compact", database, "--min-deleted", "0", "--dry-run", "--json").row
    assert (planned["dry_run"], planned["freed_bytes"]) == (True, None)
    done = ok("compact", database, "--min-deleted", "0", "--json").row
    assert done["num_dropped_chunks"] == planned["num_dropped_chunks"] > 0
    assert ok("sql", database, "select chunk_id, text from chunks where live order by 1", "--json").out == before
    shown = ok("gc", database, "--keep-snapshots", 1, "--dry-run").out
    assert "expired" in shown
    assert ok("gc", database, "--keep-snapshots", 1, "--grace", "0s", "--json").row["open_runs"] == open_runs
    table = ok("snapshots", database).out
    assert "run" in table
    assert "expired at" in table
    assert ok("restore", database, head, "--json").row["restored_snapshot"] == head
    assert ok("pin", database, "--remove", "--name", "run", "--json").row["previous_snapshot"] == head
    assert ok("exposure", database, "--testset", "exam", "--as-of", head, "--json").row["testset"] == "exam"


def test_purge_asks_proves_and_names_removed_pins(built: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(built)
    names = tmp_path / "names.txt"
    names.write_text('d5\n{"id": "d6", "source": "made"}\nnobody\n')
    pinned = ok("snapshots", database, "--json").rows[1]["snapshot"]
    ok("pin", database, pinned, "--name", "run")
    planned = run("purge", database, "--doc-ids", names, "--dry-run")
    assert planned.code == errors.EXIT_REJECTS
    assert planned.out.startswith("would purge 2 documents")
    assert "2 of 3 names are in the database. Unknown: 'nobody'." in planned.err
    assert "would remove pins: run" in planned.out
    refused = run("purge", database, "--doc-ids", names, "--yes")
    assert (refused.code, "run (snapshot" in refused.err) == (errors.EXIT_USAGE, True)
    done = run("purge", database, "--doc-ids", names, "--yes", "--break-pins", "--ignore-unknown")
    assert done.code == 0, done.out
    assert done.out.splitlines()[-1] == "0 traces left"
    row = run("purge", database, "--doc-ids", names, "--yes", "--json").row
    assert row["proof"]["remaining"] == []
    everything = run("purge", database, "--doc-ids", names, "--yes", "--all", "--json").row["proof"]
    assert everything["num_read_files"] == everything["num_files"]
    assert ok("check", database, "--read-data", "--json").row["damaged"] == []
    aside = database / "quarantine" / "chunks" / "x.parquet"
    aside.parent.mkdir(parents=True)
    aside.write_bytes(b"half of something")
    done = run("purge", database, "--doc-ids", names, "--yes")
    assert done.code == errors.EXIT_DAMAGE
    assert done.out.splitlines()[-3:] == [
        "quarantine/chunks/x.parquet: cannot be read, - (1)",
        "quarantine/: damaged files that a repair moved here. Delete them if nobody needs them.",
        "1 trace left",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("compact", "--min-deleted", "2"), ("gc", "--grace", "7"), ("gc", "--grace", "-7d"), ("gc", "--keep-snapshots", "0"),
        ("gc", "--grace", "9" * 30 + "d"), ("pin", "--name", "a/b"), ("pin", "1", "--name", "x", "--remove"), ("restore", "999"),
        ("diff", "2", "1"), ("diff", "0", "999"), ("purge", "--doc-ids", "/does/not/exist", "--yes"), ("purge", "--yes"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_usage_errors(arguments: tuple[str, ...], built: Path) -> None:
    done = run(arguments[0], built, *arguments[1:])
    assert done.code == errors.EXIT_USAGE, (done.out, done.err)
