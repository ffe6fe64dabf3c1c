"""`retrodb`: the table of commands, and the one place where errors become messages and exit codes.

A command is a file of this folder that exposes `command`, and is imported when it is called: `retrodb --help` imports none.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from retrodb import __version__, errors

from .options import Session
from .output import ConsoleOutput, JsonOutput

# Section -> command -> its line in `retrodb --help` and in the README's table. `a-b` lives in a_b.py.
SECTIONS = {
    "Build": {
        "init": "Create an empty database.",
        "tokenizer": "Train a tokenizer on your own text.",
        "ingest": "Read documents, cut them into chunks, and add what is new.",
        "dedup": "Find what overlaps the test sets, and take it out.",
        "tag": "Score every document by a word list, an expression, a classifier or a function.",
        "filter": "Delete documents for a reason, by SQL, by id or by source.",
        "undelete": "Take a reason for deletion back.",
        "embed": "Give every chunk without one its vector.",
        "space": "List vector spaces, change the default one, drop one.",
        "index": "Make the vectors searchable.",
        "queries": "Add a training set whose chunks want neighbours.",
        "neighbours": "Write the table of every chunk's nearest chunks.",
        "export": "Write a neighbour table in a trainer's format.",
        "validate": "Train a small RETRO model to see whether the neighbours help.",
        "retro": "Train, evaluate and use RETRO models on a neighbour table.",
    },
    "Look": {
        "search": "Find the chunks nearest to a text.",
        "stats": "Count what is in the database, and what it takes.",
        "snapshots": "List the versions of the database.",
        "diff": "Tell what lies between two versions.",
        "testsets": "List the test sets that the database is held against.",
        "exposure": "Tell which rows of a training run met a test set.",
        "leakage": "Tell how much of a test set its nearest chunks give away word for word.",
        "compare": "Set two spaces side by side: recall, quality, latency, bytes.",
        "eval-retrieval": "Compare what is found with judgements: nDCG, recall, MRR.",
        "check": "Verify the files against what the snapshot promises.",
        "sql": "Ask a question in SQL.",
        "bench": "Measure recall, latency and the stages' rates on this machine.",
    },
    "Maintain": {
        "update": "Run every stage over what is new, as the recipe says.",
        "schedule": "Print what makes systemd or cron update regularly.",
        "compact": "Drop deleted rows, and join small files.",
        "gc": "Delete what no kept version needs.",
        "purge": "Take documents out for good, and prove it.",
        "pin": "Keep a version that somebody reads.",
        "restore": "Make an older version the newest.",
    },
    "Start": {
        "build": "The first day in one command: preview, estimate, every stage, and a recipe.",
        "demo": "Build a database from Python's own documentation, every stage once.",
    },
}
COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}


class LazyGroup(click.Group):
    """The commands of `COMMANDS`, each imported at first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; None when there is none."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.add_command(import_module(f".{cmd_name.replace('-', '_')}", __package__).command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is refused with the nearest name."""
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
    epilog="Every option can be set in the environment: RETRODB_INGEST_WORKERS=4 is `retrodb ingest --workers 4`. "
    'Shell completion: eval "$(_RETRODB_COMPLETE=bash_source retrodb)", or zsh_source, fish_source.',
)
@click.version_option(__version__, prog_name="retrodb")
def cli() -> None:
    """Build and maintain the retrieval database of a RETRO-style language model."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. A command returns None, or the code it ends with."""
    args = list(sys.argv[1:] if args is None else args)
    # The option itself is read too late for errors in the options before it.
    session = Session(JsonOutput() if "--json" in args else ConsoleOutput())
    try:
        code = cli.main(args, prog_name="retrodb", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except errors.RetroDBError as error:
        code, message = error.exit_code, str(error)
    except click.ClickException as error:
        code, message = error.exit_code, _usage(error)
    except (click.Abort, KeyboardInterrupt):
        code, message = errors.EXIT_INTERRUPTED, "interrupted. Run the same command again to continue."
    except BrokenPipeError:
        # The reader of stdout has left. Nobody is there to be told, and the flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_ERROR
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code, message = errors.EXIT_NO_SPACE if is_full else errors.EXIT_ERROR, _system_error(error)
    else:
        return code or errors.EXIT_OK
    session.output.error(code, message)
    return code


def _usage(error: click.ClickException) -> str:
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
    return error.format_message() + (f" See '{command} --help'." if command else "")


def _system_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}."
