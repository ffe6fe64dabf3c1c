"""The framework of the command line: the table of commands, and errors as messages and exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from retrodb import errors
from retrodb_cli.main import COMMANDS, cli, main
from retrodb_cli.options import (
    EXIT_MEANINGS,
    Command,
    Session,
    json_option,
    pass_session,
    progress_option,
    workers_option,
)

CLI = Path(__file__).resolve().parents[1] / "cli"
FRAME = {"__init__", "docs", "main", "option_types", "options", "output", "render", "selection"}


@dataclass(frozen=True)
class ToyResult:
    name: str
    size_bytes: int


@pytest.fixture
def toy() -> Iterator[Callable[[BaseException | None], None]]:
    """A command `toy` that ends in the error it is given, or prints a result."""
    ending: list[BaseException | None] = [None]

    @click.command(cls=Command, name="toy", example="retrodb toy --workers 2", exits=[errors.EXIT_REJECTS])
    @workers_option
    @progress_option
    @json_option
    @pass_session
    def command(session: Session, workers: int | None) -> int | None:
        """Do nothing much."""
        if ending[0]:
            raise ending[0]
        session.output.result(ToyResult(f"toy with {workers}", 1_500))
        session.output.note(f"progress: {session.shows_progress}")
        return errors.EXIT_REJECTS if workers == 3 else None

    cli.add_command(command)
    yield lambda error: ending.__setitem__(0, error)
    del cli.commands["toy"]


Toy = Callable[[BaseException | None], None]
Captured = pytest.CaptureFixture[str]


def test_the_table_lists_exactly_the_command_files() -> None:
    files = {path.stem for path in CLI.glob("*.py") if not path.stem.startswith("render_")} - FRAME
    assert {name.replace("-", "_") for name in COMMANDS} == files


def test_help_lists_every_command_and_imports_none(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_result_goes_to_stdout_and_note_to_stderr(toy: Toy, capsys: Captured) -> None:
    assert main(["toy", "--workers", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["name        toy with 2", "size bytes  1.5 kB"]
    assert err == "progress: False\n"


def test_json_prints_one_typed_object_a_line(toy: Toy, capsys: Captured) -> None:
    assert main(["toy", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"message_type": "toy_result", "name": "toy with None", "size_bytes": 1500}
    assert json.loads(err) == {"message_type": "note", "message": "progress: False"}


def test_a_command_can_return_an_exit_code(toy: Toy) -> None:
    assert main(["toy", "--workers", "3"]) == errors.EXIT_REJECTS


def test_help_ends_in_an_example_and_the_exit_codes(toy: Toy, capsys: Captured) -> None:
    assert main(["toy", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:\n  retrodb toy --workers 2\n" in shown
    assert "Exit codes:\n  0    success\n" in shown
    assert "  3    success, but some records were rejected, or some names are unknown\n" in shown


CASES = [
    (
        errors.NotADatabaseError("no database", where="x", remedy="Run 'retrodb init x'."),
        10,
        "x: no database. Run 'retrodb init x'.",
    ),
    (errors.LockedError("another command is running"), 11, "another command is running."),
    (errors.DamagedFileError("checksum mismatch", where="chunks/1.parquet"), 5, "chunks/1.parquet: checksum mismatch."),
    (OSError(errno.ENOSPC, "No space left on device", "a/b"), 4, "a/b: No space left on device."),
    (
        OSError(errno.EMFILE, "Too many open files", "a/b"),
        1,
        "a/b: Too many open files. Raise the limit with 'ulimit -n'.",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "a/b: Permission denied."),
    (KeyboardInterrupt(), 130, "interrupted. Run the same command again to continue."),
]


@pytest.mark.parametrize(("error", "code", "message"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_errors_become_messages_and_exit_codes(
    error: BaseException, code: int, message: str, toy: Toy, capsys: Captured
) -> None:
    toy(error)
    assert main(["toy"]) == code
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", f"Error: {message}")

    assert main(["toy", "--json"]) == code
    out, err = capsys.readouterr()
    assert (out, json.loads(err)) == ("", {"message_type": "error", "code": code, "message": message})


def test_internal_errors_are_not_hidden(toy: Toy) -> None:
    toy(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["toy"])


@pytest.mark.parametrize("arguments", [["toy", "--wrokers", "2"], ["toy", "--workers", "0"], ["toy", "more"]])
def test_usage_errors_name_the_help(arguments: list[str], toy: Toy, capsys: Captured) -> None:
    assert main(arguments) == errors.EXIT_USAGE
    assert "See 'retrodb toy --help'." in capsys.readouterr().err
    assert main([*arguments, "--json"]) == errors.EXIT_USAGE
    assert json.loads(capsys.readouterr().err)["code"] == errors.EXIT_USAGE


def test_unknown_command_suggests_the_nearest(capsys: Captured) -> None:
    assert main(["ingset"]) == errors.EXIT_USAGE
    assert "No command 'ingset'. Did you mean 'ingest'?" in capsys.readouterr().err


def test_options_can_be_set_in_the_environment(toy: Toy, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRODB_TOY_WORKERS", "7")
    monkeypatch.setenv("RETRODB_TOY_JSON", "1")
    assert main(["toy"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "toy with 7"


def test_progress_is_shown_when_asked_for(toy: Toy, capsys: Captured) -> None:
    assert main(["toy", "--progress"]) == 0
    assert capsys.readouterr().err == "progress: True\n"


def test_a_closed_pipe_gives_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from retrodb_cli.main import run; run()", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (errors.EXIT_ERROR, b"")


@pytest.mark.parametrize(("argument", "code"), [("--help", errors.EXIT_OK), ("--no-such-option", errors.EXIT_USAGE)])
def test_the_process_ends_before_the_interpreter_is_taken_apart(argument: str, code: int) -> None:
    """Threads of Arrow can end it with SIGABRT then, although all is done. What it printed, and other exit handlers, are kept."""
    late = "import os\nclass Late:\n    def __del__(self): os.abort()\nlate = Late()\n"
    other = "import atexit, retrodb_cli.main as program\nreal = program.main\n"
    other += "program.main = lambda: (atexit.register(print, 'handled'), real())[1]\n"
    command = [sys.executable, "-c", f"{late}{other}program.run()", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Usage: retrodb" in done.stdout + done.stderr or "--no-such-option" in done.stderr
    assert done.stdout.endswith("handled\n")


def test_exit_codes_of_the_help_are_those_of_the_error_tree() -> None:
    named = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert set(EXIT_MEANINGS) == named
