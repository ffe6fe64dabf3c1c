"""RETRODB_DB, the help without arguments, questions without a terminal, and paths that cannot be a database."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from retrodb import errors

from .conftest import ok, run
from .test_terminal import ARGUMENTS

Fresh = Callable[[Path], Path]


@pytest.fixture
def default(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETRODB_DB", str(built))
    return built


@pytest.mark.parametrize(
    "arguments",
    [("stats",), ("snapshots",), ("sql", "select count(*) as n from documents"), ("diff", "1", "2"),
     ("restore", "1", "--dry-run"),
     ("search", "harbour", "--k", "2"), ("pin", "1", "--name", "x", "--dry-run"), ("pin", "--name", "x", "--dry-run"),
     ("neighbours", "show", "--row", "3"), ("space", "list"), ("neighbours", "--dry-run"), ("check", "--read-data"),
     ("filter", "--where", "true", "--dry-run"), ("space", "default", "default", "--dry-run")],
)  # fmt: skip
def test_the_environment_names_the_database(arguments: tuple[str, ...], default: Path, empty: Path) -> None:
    words = next(n for n in (2, 1) if arguments[:n] in ARGUMENTS)
    explicit = ok(*arguments[:words], default, *arguments[words:], "--json")
    assert ok(*arguments, "--json").out == explicit.out
    other = run(*arguments[:words], empty, *arguments[words:], "--json")
    assert other.out != explicit.out


def test_a_path_that_is_no_database_is_never_replaced(default: Path, tmp_path: Path) -> None:
    assert run("gc", tmp_path / "typo", "--dry-run").code == errors.EXIT_NO_DATABASE
    assert run("stats", tmp_path / "typo").code == errors.EXIT_NO_DATABASE
    assert run("ingest", tmp_path / "typo", "--source", "s", "--dry-run").code == errors.EXIT_NO_DATABASE


def test_a_new_database_and_an_export_keep_their_own(
    default: Path, corpus: Path, tokenizer: Path, empty: Path, built: Path, fresh: Fresh, tmp_path: Path
) -> None:
    options = ["--tokenizer", tokenizer, "--encoder", "hashing:8", "--dry-run"]
    assert ok("build", tmp_path / "new", corpus, *options).code == 0
    assert ok("init", tmp_path / "new", *options).code == 0
    copy = fresh(built)
    ok("export", copy, tmp_path / "out", "--to", "arrays")
    assert ok("export", "--refresh", tmp_path / "out", "--json").row
    exports = [row["path"] for row in ok("export", "--list", "--json").rows]
    assert str(tmp_path / "out") not in exports
    assert str(tmp_path / "out") in [row["path"] for row in ok("export", copy, "--list", "--json").rows]


def test_a_missing_database_is_a_usage_error() -> None:
    done = run("stats")
    assert done.code == errors.EXIT_USAGE
    assert "DB" in done.err
    assert "RETRODB_DB" in run("--help").out


def test_retrodb_alone_prints_its_help() -> None:
    done = run()
    assert (done.code, done.err) == (0, "")
    assert done.out.index("Start:") < done.out.index("Build:")


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"", b"y\n"])
def test_an_answer_is_not_an_interruption(
    answer: bytes, built: Path, fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = fresh(built)
    (tmp_path / "ids.txt").write_text("d5\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(answer)))
    done = run("purge", database, "--doc-ids", tmp_path / "ids.txt", "--workers", 1)
    assert "interrupted" not in done.err
    if answer == b"y\n":
        assert done.code == 0
    elif answer:
        assert (done.code, done.err.endswith("Nothing was deleted.\n")) == (errors.EXIT_ERROR, True)
    else:
        assert done.code == errors.EXIT_USAGE
        assert "cannot ask for confirmation without a terminal. Add '--yes'" in done.err


@pytest.mark.parametrize("command", ["init", "build", "check", "stats"])
@pytest.mark.parametrize("path", ["", " ", "{file}", "{file}/db", "/proc/x"])
def test_paths_that_cannot_be_a_database_say_why(
    command: str, path: str, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    more = {"init": ["--tokenizer", tokenizer], "build": [corpus, "--tokenizer", tokenizer, "--yes", "--workers", 1]}
    encoder = ["--encoder", "hashing:8"] if command in more else []
    done = run(command, path.format(file=tmp_path / "file"), *more.get(command, []), *encoder)
    assert done.code in (errors.EXIT_USAGE, errors.EXIT_NO_DATABASE)
    cause = {
        "": "is empty",
        " ": "is empty",
        "/proc/x": "no directory can be made" if more.get(command) else "not a retrodb",
    }
    assert cause.get(path, "this is a file") in done.err
    assert "Run the same command again" not in done.err
    assert (tmp_path / "file").read_text() == "x"


def test_an_unknown_space_lists_those_that_there_are(built: Path) -> None:
    done = run("search", built, "harbour", "--space", "defualt")
    assert done.code == errors.EXIT_USAGE
    assert "there is no space 'defualt'. There are: default. Did you mean 'default'?" in done.err


def test_empty_lists_say_that_they_are_empty(empty: Path) -> None:
    for command in (["testsets", empty], ["space", "list", empty], ["export", empty, "--list"], ["diff", empty, 0, 0]):
        done = ok(*command)
        assert (done.out, bool(done.err)) == ("", True), command
        assert ok(*command, "--json").out == ""
    assert "doc_id" in ok("sql", empty, "select doc_id from documents").err
