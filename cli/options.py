"""The options that commands share, and the command class whose help ends in an example and the exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from retrodb import errors

from .output import ConsoleOutput, JsonOutput, Output

if TYPE_CHECKING:
    from retrodb.database import Database

EXIT_MEANINGS = {
    errors.EXIT_OK: "done",
    errors.EXIT_ERROR: "an error, named on stderr",
    errors.EXIT_USAGE: "an option or argument that cannot be meant",
    errors.EXIT_REJECTS: "finished, with rejected records",
    errors.EXIT_NO_SPACE: "the disk is full",
    errors.EXIT_DAMAGE: "a file is damaged or missing",
    errors.EXIT_NO_DATABASE: "no database there, or one of a newer format",
    errors.EXIT_CONFLICT: "another command changed or holds the database; run again",
    errors.EXIT_INTERRUPTED: "interrupted; the same command run again continues",
}
# What any command may end with; a command names only those that it has beside them.
_ALWAYS = (errors.EXIT_OK, errors.EXIT_ERROR, errors.EXIT_USAGE, errors.EXIT_INTERRUPTED)

READING_EXITS = (errors.EXIT_DAMAGE, errors.EXIT_NO_DATABASE)
WRITING_EXITS = (*READING_EXITS, errors.EXIT_NO_SPACE, errors.EXIT_CONFLICT)


@dataclass
class Session:
    """What one run of the command line carries from the options to the commands and to the error report."""

    output: Output = field(default_factory=ConsoleOutput)
    is_progress_wanted: bool | None = None  # None: when stderr is a terminal and the output is not JSON

    @property
    def shows_progress(self) -> bool:
        """Whether progress belongs on stderr in this run."""
        if self.is_progress_wanted is None:
            return sys.stderr.isatty() and isinstance(self.output, ConsoleOutput)
        return self.is_progress_wanted


pass_session = click.make_pass_decorator(Session)


class Command(click.Command):
    """A command whose help has an example and its exit codes: `@click.command(cls=Command, example=..., exits=(3, 4))`."""

    def __init__(self, *args: Any, example: str, exits: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example, self.exits = example, exits

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example and the exit codes under the options."""
        with formatter.section("Example"):
            for line in self.example.strip().splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), EXIT_MEANINGS[code]) for code in sorted({*_ALWAYS, *self.exits})])
        super().format_epilog(ctx, formatter)


def _use_json(ctx: click.Context, _param: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        ctx.ensure_object(Session).output = JsonOutput()


def _use_progress(ctx: click.Context, _param: click.Parameter, is_wanted: bool | None) -> None:
    ctx.ensure_object(Session).is_progress_wanted = is_wanted


database_argument = click.argument("database", metavar="DB")
json_option = click.option(
    "--json", is_flag=True, is_eager=True, expose_value=False, callback=_use_json, help="Print JSON lines."
)
progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    expose_value=False,
    callback=_use_progress,
    help="Show progress on stderr.  [default: on a terminal]",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Processes to use.  [default: one per core]"
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps."
)
format_option = click.option(
    "--format",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Of the input: jsonl, parquet, text, html, warc, ...",
)
space_option = click.option("--space", metavar="NAME", help="Vector space.  [default: the database's default space]")
as_of_option = click.option(
    "--as-of", type=click.IntRange(min=0), metavar="N", help="Read snapshot N.  [default: the newest]"
)


def share(text: str) -> float:
    """The type of options that are a share: 0.005, or 0.5%."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise click.BadParameter(f"'{text}' is no share; write 0.5% or 0.005.")
    return value


def is_given(name: str) -> bool:
    """Whether the user gave an option of the running command, and did not leave it at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def open_database(session: Session, path: str, workers: int | None = None) -> Database:
    """The database that a command works on."""
    from retrodb.database import Database

    return Database(path, workers=workers, progress=session.shows_progress)
