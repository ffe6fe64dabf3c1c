"""The name of a pin stands wherever the number of a snapshot does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.errors import ConflictError, UsageError
from retrodb.format.entries import PinEntry
from retrodb.format.snapshot import dump_snapshot
from retrodb.maintain.snapshots.pins import execute_pin, plan_pin, plan_unpin
from retrodb.stages.context import Context
from retrodb.store.storage import LocalStorage
from retrodb_cli.main import COMMANDS, cli, main
from retrodb_cli.option_types import snapshot_ref

Make = Callable[..., Database]
NAMES = {"as_of", "snapshot", "since", "a", "b"}
"""Of all parameters that are snapshots."""


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Snapshot 1 has the document a and the name release-1, the newest one also b."""
    database = make_database({"a": made_text(1, 150)})
    database.pin(name="release-1")
    database.ingest([write_documents(tmp_path / "b.jsonl", {"b": made_text(2, 150)})], source="made")
    return database


def parameters() -> Iterator[tuple[str, click.Parameter]]:
    """Those of all commands, with the path of the command."""
    stack: list[tuple[str, click.Command | None]] = [
        (name, cli.get_command(click.Context(cli), name)) for name in COMMANDS
    ]
    while stack:
        path, command = stack.pop()
        assert command is not None
        if isinstance(command, click.Group):
            names = click.Group.list_commands(command, click.Context(command))
            stack += [(f"{path} {name}", command.get_command(click.Context(command), name)) for name in names]
        for parameter in command.params:
            yield path, parameter


def takes_snapshot(parameter: click.Parameter) -> bool:
    return getattr(parameter.type, "func", None) is snapshot_ref


def test_every_option_and_argument_that_is_a_snapshot_takes_a_name() -> None:
    others = [(path, p.name) for path, p in parameters() if p.name in NAMES and not takes_snapshot(p)]
    assert others == []
    with_number = [
        (path, p.name)
        for path, p in parameters()
        if isinstance(p.type, click.types.IntParamType)
        and "snapshot" in f"{p.name} {getattr(p, 'help', '') or ''}".lower()
    ]
    assert with_number == [("gc", "keep_snapshots")]
    paths = {path for path, p in parameters() if takes_snapshot(p)}
    assert {"search", "sql", "export", "diff", "restore", "pin", "check", "neighbours show", "space list"} <= paths


def test_every_method_takes_a_name() -> None:
    kinds = {
        (name, p.name): str(p.annotation)
        for name, method in inspect.getmembers(Database, inspect.isfunction)
        for p in inspect.signature(method).parameters.values()
        if p.name in NAMES
    }
    assert len(kinds) > 20
    assert {each: kind for each, kind in kinds.items() if not kind.startswith("int | str")} == {}


def test_a_name_means_the_snapshot_in_every_command(database: Database) -> None:
    number, newest = 1, database.view().snapshot.number
    assert database.view("release-1").snapshot.number == database.view("1").snapshot.number == number
    assert database.view(np.int64(number)).snapshot.number == number  # type: ignore[arg-type]
    assert database.stats(as_of="release-1") == database.stats(as_of=number)
    assert database.check(as_of="release-1").snapshot == number
    assert database.diff("release-1", newest) == database.diff(number, newest)
    assert database.pin("release-1", name="stable").pinned_snapshot == number
    for line in (
        ["stats", database.path, "--as-of", "release-1"],
        ["sql", database.path, "select doc_id from documents", "--as-of", "release-1"],
        ["diff", database.path, "release-1", str(newest)],
        ["restore", database.path, "release-1", "--dry-run"],
        ["pin", database.path, "release-1", "--name", "another"],
    ):
        assert main(line) == 0
    assert database.restore("release-1").restored_snapshot == number
    assert database.stats().num_live_documents == 1


def test_an_unknown_name_is_refused_with_the_nearest_and_all_others(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    database.pin(name="other")
    with pytest.raises(UsageError, match=r"no pin 'relase-1'.*There are: other, release-1. Did you mean 'release-1'"):
        database.view("relase-1")
    with pytest.raises(UsageError, match=r"db: no snapshot 99\. "):
        database.view("99")
    for command in (["restore", database.path, "none"], ["stats", database.path, "--as-of", "none"]):
        assert main(command) == UsageError.exit_code
        assert "There are: other, release-1." in capsys.readouterr().err
    assert main(["stats", database.path, "--as-of", "-1"]) == UsageError.exit_code
    assert "'-1' is not a snapshot" in capsys.readouterr().err


def test_a_named_snapshot_stays_until_its_name_is_removed(database: Database, tmp_path: Path) -> None:
    assert 1 not in database.gc(keep_snapshots=1).expired_snapshots
    assert database.view("release-1").snapshot.number == 1
    database.unpin("release-1")
    assert database.gc(keep_snapshots=1).expired_snapshots == (1, 3)  # 0 and 2 expired before
    with pytest.raises(UsageError, match="no pin 'release-1'"):
        database.view("release-1")


def test_a_name_of_a_snapshot_that_expired_names_both(database: Database) -> None:
    head = database.view().snapshot
    path = Path(database.path, database.view(1).snapshot.path)
    assert head.existing(PinEntry, "release-1").snapshot == 1
    path.write_bytes(dump_snapshot(database.view(1).snapshot.stub("2026-01-01")))
    with pytest.raises(UsageError, match=r"snapshot 1 \(pin 'release-1'\) expired"):
        database.view("release-1")


def test_of_two_who_give_the_same_name_at_once_one_wins(database: Database) -> None:
    context = Context(LocalStorage(database.path))
    first, second = plan_pin(context, 1, "x"), plan_pin(context, 2, "x")
    assert execute_pin(context, second).pinned_snapshot == 2
    with pytest.raises(ConflictError):
        execute_pin(context, first)
    assert database.view("x").snapshot.number == 2
    removed, moved = plan_unpin(context, "x"), plan_pin(context, 1, "x", move=True)
    execute_pin(context, moved)
    with pytest.raises(ConflictError):
        execute_pin(context, removed)
    assert database.view("x").snapshot.number == 1


def test_names_that_older_versions_allowed_can_be_used_and_removed(database: Database) -> None:
    context = Context(LocalStorage(database.path))
    plan = plan_pin(context, 1, "y")
    old = type(plan)(plan.view, "my run ü", 1)
    execute_pin(context, old)
    assert database.view("my run ü").snapshot.number == 1
    assert database.unpin("my run ü").pinned_snapshot is None
