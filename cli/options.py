"""The options that commands share, and the command class whose help ends in an example and the exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

import click

from retrodb import errors
from retrodb.config import IngestParams

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


def _bundle(*options: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Any]:
    """One decorator for several, the first one outermost, as they would be written above a function."""

    def decorate(command: Callable[..., Any]) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


reads_records = _bundle(
    format_option,
    click.option("--id-field", metavar="NAME", help="Field with the document's id.  [default: the usual names]"),
    click.option("--text-field", metavar="NAME", help="Field with the text.  [default: the usual names]"),
    click.option("--key-field", metavar="NAME", help="Key-value corpora: the field that is embedded."),
    click.option("--value-field", metavar="NAME", help="Key-value corpora: the field that follows the key."),
    click.option(
        "--front-matter",
        type=click.Choice(["text", "metadata"]),
        default=IngestParams.front_matter,
        show_default=True,
        help="What the YAML or TOML header of a text or Markdown file is.",
    ),
)
"""How the records of a corpus become documents."""
runs_tasks = _bundle(workers_option, dry_run_option, progress_option, json_option, pass_session)
"""The last options of a command that changes the database by tasks."""
changes = _bundle(dry_run_option, json_option, pass_session)
"""Of one that changes it at once."""
measures = _bundle(workers_option, progress_option, json_option, pass_session)
"""Of one that takes time and changes nothing."""
reads = _bundle(as_of_option, json_option, pass_session)
"""Of one that reads a snapshot."""


def _read_names(_ctx: click.Context, _param: click.Parameter, file: TextIO | None) -> list[str] | None:
    return None if file is None else [name for line in file if (name := line.rstrip("\r\n"))]


def names_option(*, required: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `doc_ids`: a file with names of documents."""
    return click.option(
        "--doc-ids",
        type=click.File(encoding="utf-8"),
        callback=_read_names,
        required=required,
        metavar="FILE",
        help="Names of documents, one a line: an id, or source/id; - is stdin.",
    )


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose documents: `where`, `doc_ids` and `source`."""
    where = click.option(
        "--where", metavar="SQL", help="A condition over columns of documents, metadata->>'field', scores and text."
    )
    source = click.option("--source", metavar="NAME", help="Documents of this source only.")
    return where(names_option()(source(command)))


def share(text: str) -> float:
    """The type of options that are a share: 0.005, or 0.5%."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise click.BadParameter(f"'{text}' is no share; write 0.5% or 0.005.")
    return value


def size(text: str) -> int:
    """The type of options that are a number of bytes: 8GiB, 500MB or 4096."""
    match = re.fullmatch(r"(\d+)\s*(?:([kMGT])(i?))?B?", text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"'{text}' is no size; write 8GiB, 500MB or a number of bytes.")
    power = "kMGT".index(match[2]) + 1 if match[2] else 0
    return int(match[1]) * int((1024 if match[3] else 1000) ** power)


def duration(text: str) -> timedelta:
    """The type of options that are a time: 7d, 12h, 30m or 45s."""
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    if not text[:-1].isdecimal() or text[-1] not in units:
        raise click.BadParameter(f"'{text}' is no time; write 7d, 12h, 30m or 45s.")
    try:
        return timedelta(**{units[text[-1]]: int(text[:-1])})
    except OverflowError:
        raise click.BadParameter(f"'{text}' is longer than anything lasts.") from None


memory_option = click.option(
    "--memory", "memory_bytes", type=size, default="4G", show_default=True, metavar="SIZE", help="That it may use."
)


def is_given(name: str) -> bool:
    """Whether the user gave an option of the running command, and did not leave it at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def open_database(session: Session, path: str, workers: int | None = None) -> Database:
    """The database that a command works on."""
    from retrodb.database import Database

    return Database(path, workers=workers, progress=session.shows_progress)
