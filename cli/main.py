"""`retrodb`: the table of commands, and the only place where errors become messages and exit codes.

A command is a file in this folder that defines `command`. It is imported when it is called. `retrodb --help` imports none.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

from retrodb import __version__, errors
from retrodb.printable import escape, has_lone_surrogate

from .options import Session
from .output import ConsoleOutput, JsonOutput

# Section -> command -> its line in `retrodb --help` and in the table of the README. The command `a-b` is in a_b.py.
SECTIONS = {
    "Start": {
        "plan": "Predict hours, bytes, memory and cost of every stage, before anything is built.",
        "build": "Build a database in one command: preview, estimate, every stage, and a recipe.",
        "demo": "Build a database from Python's own documentation.",
    },
    "Build": {
        "init": "Create an empty database.",
        "tokenizer": "Train a tokenizer on your own text.",
        "ingest": "Read documents, split them into chunks, and add what is new.",
        "dedup": "Find and delete documents that overlap with test sets.",
        "tag": "Score documents with a word list, a regular expression, a classifier or a function.",
        "filter": "Delete documents by SQL condition, id or source.",
        "undelete": "Revoke a reason for deletion.",
        "embed": "Compute the missing vectors of chunks.",
        "space": "List vector spaces, set the default space, or delete a space.",
        "index": "Index vectors for search.",
        "queries": "Add a training set whose chunks need neighbours.",
        "neighbours": "Compute a table with the nearest chunks of every chunk.",
        "export": "Write a neighbour table in the format of a trainer.",
        "validate": "Train a small RETRO model to see whether the neighbours help.",
        "retro": "Train, evaluate and use RETRO models.",
    },
    "Inspect": {
        "search": "Find the chunks nearest to a text.",
        "stats": "Show counts and sizes.",
        "snapshots": "List the snapshots of the database.",
        "diff": "Show the changes between two snapshots.",
        "testsets": "List the registered test sets.",
        "exposure": "Find rows of a training run that share text with a test set.",
        "leakage": "Measure how many tokens a test set shares with its nearest chunks.",
        "compare": "Compare two spaces: recall, quality, latency and size.",
        "eval-retrieval": "Evaluate search with relevance judgements: nDCG, recall and MRR.",
        "check": "Find damaged and missing files, and repair them.",
        "sql": "Run an SQL query.",
        "bench": "Measure recall, latency and throughput on this machine.",
    },
    "Maintain": {
        "update": "Run every stage over new and changed input, as the recipe says.",
        "schedule": "Print files that run updates regularly: systemd, cron, Slurm, Kubernetes, Airflow.",
        "compact": "Remove deleted rows from files, and merge small files.",
        "gc": "Expire old snapshots, and delete files that are no longer needed.",
        "purge": "Delete documents permanently, and prove that no trace is left.",
        "pin": "Name a snapshot, and protect it from expiring.",
        "restore": "Return to the state of an older snapshot.",
        "copy": "Copy a snapshot to another place: a backup, a publication, a restore.",
    },
    "Cluster": {
        "work": "Run tasks that commands leave to workers.",
        "runs": "List, inspect, retry, cancel or commit runs.",
    },
}
COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}


class LazyGroup(click.Group):
    """The commands of `COMMANDS`. Each is imported when it is first used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command with this name, or None."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.add_command(import_module(f".{cmd_name.replace('-', '_')}", __package__).command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. For an unknown one, the message suggests the nearest name."""
        from difflib import get_close_matches

        if args[0] not in {*COMMANDS, *self.commands} and not args[0].startswith("-"):
            nearest = get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No command '{args[0]}'." + (f" Did you mean '{nearest[0]}'?" if nearest else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing a command."""
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"auto_envvar_prefix": "RETRODB", "help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog="RETRODB_DB is the database of commands that are given no DB: RETRODB_DB=my.retrodb retrodb stats. "
    "Every option can be set in the environment: RETRODB_INGEST_WORKERS=4 means `retrodb ingest --workers 4`. "
    'For shell completion, run: eval "$(_RETRODB_COMPLETE=bash_source retrodb)" (or zsh_source, fish_source).',
)
@click.version_option(__version__, prog_name="retrodb")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Build and maintain the retrieval database of a RETRO-style language model."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. A command returns None for success, or an exit code."""
    args = list(sys.argv[1:] if args is None else args)
    # Errors in options before --json must be JSON too, so it is looked up before the options are parsed.
    session = Session(JsonOutput() if "--json" in args else ConsoleOutput(), arguments=tuple(args))
    try:
        _refuse_undecodable(args)
        code = cli.main(args, prog_name="retrodb", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except errors.RetroDBError as error:
        code, message = error.exit_code, str(error)
    except click.ClickException as error:
        code, message = error.exit_code, _usage(error)
    except (click.Abort, KeyboardInterrupt):
        code, message = errors.EXIT_INTERRUPTED, "interrupted. Run the same command again to continue."
    except BrokenPipeError:
        # The program that reads stdout has ended. The flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_ERROR
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code, message = errors.EXIT_NO_SPACE if is_full else errors.EXIT_ERROR, _system_error(error)
    else:
        return code or errors.EXIT_OK
    session.output.error(code, message)
    return code


def run() -> NoReturn:
    """The program `retrodb`: runs the command line, and ends the process.

    It ends before the interpreter and its libraries are taken apart. A thread of Arrow that still holds an object of Python
    would end the process with SIGABRT then (apache/arrow, issue 34314), after all work was done.
    """
    code = errors.EXIT_ERROR

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # before those of the libraries, so it is called after them
    code = main()
    sys.exit(code)


def _refuse_undecodable(args: Sequence[str]) -> None:
    """Raises UsageError for an argument that is not UTF-8."""
    for arg in (*args, *(value for name, value in os.environ.items() if name.startswith("RETRODB_"))):
        if has_lone_surrogate(arg):
            if _is_utf8(os.fsencode(arg)):
                raise errors.UsageError(
                    f"the argument '{escape(arg)}' is not in the encoding of this locale ({sys.getfilesystemencoding()})",
                    remedy="Set the environment variable PYTHONUTF8=1, or use a UTF-8 locale.",
                )
            raise errors.UsageError(
                f"the argument '{escape(arg)}' is not UTF-8",
                remedy="Write it in UTF-8. To read a file with such a name, rename it, or give the folder that contains it.",
            )


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _usage(error: click.ClickException) -> str:
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
    return error.format_message() + (f" See '{command} --help'." if command else "")


def _system_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = " Raise the limit with 'ulimit -n'." if error.errno == errno.EMFILE else ""
    return f"{where}{error.strerror or error}.{remedy}"


if __name__ == "__main__":
    run()
