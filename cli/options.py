"""The options that several commands share, and the command class whose help ends with an example and the exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

import click

from retrodb import errors
from retrodb.config import IngestParams

from .option_types import duration, fraction, size, snapshot_ref
from .output import ConsoleOutput, JsonOutput, Output, printable

if TYPE_CHECKING:
    from retrodb.database import Database

# The parameters of a callback are the options of its command.
Callback: TypeAlias = Callable[..., object]  # type: ignore[explicit-any]
Decorator: TypeAlias = Callable[[Callback], Callback]

EXIT_MEANINGS = {
    errors.EXIT_OK: "success",
    errors.EXIT_ERROR: "an error; see the message on stderr",
    errors.EXIT_USAGE: "an invalid option or argument",
    errors.EXIT_REJECTS: "success, but some records were rejected, or some names are unknown",
    errors.EXIT_NO_SPACE: "the disk is full",
    errors.EXIT_DAMAGE: "a file is damaged or missing",
    errors.EXIT_NO_DATABASE: "no database at this path, or its format is too new or too old",
    errors.EXIT_CONFLICT: "another command is changing the database; run the command again",
    errors.EXIT_REQUEUE: "told to stop; start the worker again",
    errors.EXIT_INTERRUPTED: "interrupted; run the same command again to continue",
}
DATABASE_VARIABLE = "RETRODB_DB"
"""The environment variable with the database of commands that are given none."""
STORE_URLS = ("s3://", "gs://", "az://")
"""How the URL of a database or an input in an object store begins."""
# Exit codes of every command. A command lists only its additional ones.
_COMMON_EXITS = (errors.EXIT_OK, errors.EXIT_ERROR, errors.EXIT_USAGE, errors.EXIT_INTERRUPTED)

READING_EXITS = (errors.EXIT_DAMAGE, errors.EXIT_NO_DATABASE)
WRITING_EXITS = (*READING_EXITS, errors.EXIT_NO_SPACE, errors.EXIT_CONFLICT)


@dataclass
class Session:
    """The state of one run of the command line: how it prints, and whether it shows progress."""

    output: Output = field(default_factory=ConsoleOutput)
    progress: bool | None = None  # None: show progress if stderr is a terminal and the output is not JSON
    memory_bytes: int | None = None  # memory limit of the command; None: half of the machine's memory
    engine: str = "local"  # what runs its tasks
    lease_s: float | None = None  # of the engine; None: its default
    ray_address: str | None = None  # of the engine; None: that of the environment, or of this machine
    arguments: tuple[str, ...] = ()  # after `retrodb`

    @property
    def shows_progress(self) -> bool:
        """Whether to show progress on stderr. Who waits for other machines is told so."""
        if self.progress is None and self.engine != "local":
            return True
        if self.progress is None:
            return sys.stderr.isatty() and isinstance(self.output, ConsoleOutput)
        return self.progress


pass_session = click.make_pass_decorator(Session)


class Command(click.Command):
    """A command whose help ends with an example and its exit codes: `@click.command(cls=Command, example=..., exits=...)`."""

    def __init__(
        self,
        name: str | None,
        *,
        callback: Callback | None,
        params: list[click.Parameter],
        help: str | None,
        example: str,
        exits: Sequence[int] = (),
    ) -> None:
        super().__init__(name, callback=callback, params=params, help=help)
        self.example, self.exits = example, exits

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Without DB, the database is that of the environment."""
        database = os.environ.get(DATABASE_VARIABLE)
        if database and any(isinstance(param, click.Argument) and param.name == "database" for param in self.params):
            args = self._with_database(ctx, args, database)
        return super().parse_args(ctx, args)

    def _with_database(self, ctx: click.Context, args: list[str], database: str) -> list[str]:
        """The arguments with the database of the environment in front, if the user gave none."""
        options = click.Command(None, params=[param for param in self.params if isinstance(param, click.Option)])
        try:
            values, given, _ = options.make_parser(ctx).parse_args(args=list(args))
        except click.UsageError:
            return args  # the message comes from the parser of the command
        if "refresh" in values:  # an export knows its database
            return args
        others = [param for param in self.params if isinstance(param, click.Argument) and param.name != "database"]
        most = float("inf") if any(param.nargs < 0 for param in others) else len(others)
        is_given = bool(given) and (len(given) > most or self._is_database(given[0], others))
        return args if is_given else [database, *args]

    @staticmethod
    def _is_database(path: str, others: Sequence[click.Parameter]) -> bool:
        """Whether the first argument must be DB: it is one, or it is no input although inputs follow."""
        takes_inputs = any(param.name in ("inputs", "files", "more") for param in others)
        if path.startswith(STORE_URLS):
            from retrodb.database import has_database

            return not takes_inputs or has_database(path)
        if os.path.isfile(os.path.join(path, "retrodb.toml")):
            return True
        return takes_inputs and path != "-" and not os.path.lexists(path) and not set(path) & set("*?[")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example and the exit codes below the options."""
        with formatter.section("Example"):
            for line in self.example.strip().splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), EXIT_MEANINGS[code]) for code in sorted({*_COMMON_EXITS, *self.exits})])
        super().format_epilog(ctx, formatter)


def _use_json(ctx: click.Context, _param: click.Parameter, is_json: bool) -> None:
    if is_json:
        ctx.ensure_object(Session).output = JsonOutput()


def _use_memory(ctx: click.Context, _param: click.Parameter, memory_bytes: int | None) -> None:
    ctx.ensure_object(Session).memory_bytes = memory_bytes


def _use_engine(ctx: click.Context, _param: click.Parameter, engine: str) -> None:
    ctx.ensure_object(Session).engine = engine


def _use_lease(ctx: click.Context, _param: click.Parameter, lease: timedelta | None) -> None:
    if lease is not None:
        ctx.ensure_object(Session).lease_s = lease.total_seconds()


def _use_ray_address(ctx: click.Context, _param: click.Parameter, address: str | None) -> None:
    ctx.ensure_object(Session).ray_address = address


def _use_progress(ctx: click.Context, _param: click.Parameter, progress: bool | None) -> None:
    ctx.ensure_object(Session).progress = progress


database_argument = click.argument("database", metavar="DB")
"""The database. `Command` takes it from the environment if it is not given."""
json_option = click.option(
    "--json",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_use_json,
    help="Print results as JSON, one object per line.",
)
progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    expose_value=False,
    callback=_use_progress,
    help="Show progress on stderr.  [default: only on a terminal]",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what the command would do, and change nothing.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Number of worker processes.  [default: one per core]"
)


def combine(*decorators: Decorator) -> Decorator:
    """One decorator for several. The first one is the outermost, as if they were written above a function in this order."""

    def decorate(command: Callback) -> Callback:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


engine_options = combine(
    click.option(
        "--engine",
        type=click.Choice(["local", "workers", "ray"]),
        default="local",
        show_default=True,
        expose_value=False,
        callback=_use_engine,
        help="What runs the tasks: processes of this machine, 'retrodb work' processes on any machine, or a Ray cluster.",
    ),
    click.option(
        "--lease",
        type=duration,
        expose_value=False,
        callback=_use_lease,
        metavar="TIME",
        help="With --engine workers: give the tasks of a worker that shows no sign of life for this time to another one.  "
        "[default: 30s]",
    ),
    click.option(
        "--ray-address",
        expose_value=False,
        callback=_use_ray_address,
        metavar="ADDRESS",
        help="With --engine ray: HOST:PORT of the cluster, 'auto' for one of this machine, or 'local' to start one.  "
        "[default: RAY_ADDRESS, or one of this machine, or else start one]",
    ),
)
"""What runs the tasks of a command. `open_database` passes it on."""
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Device to compute on: auto, cpu, cuda, cuda:1 or mps.",
)
recipe_device_option = click.option(
    "--device",
    metavar="NAME",
    help="Device to compute on: auto, cpu, cuda, cuda:1 or mps.  [default: from the recipe, or else auto]",
)
memory_option = click.option(
    "--memory",
    "memory_bytes",
    type=size,
    expose_value=False,
    callback=_use_memory,
    metavar="SIZE",
    help="Memory limit of all processes of the command together, such as 500MiB or 8GiB. Mapped files do not count. KB, MB "
    "and GB also mean powers of two.  [default: half of the machine's memory]",
)
"""The memory limit of a command (`retrodb/memory.py`). `open_database` passes it on."""
format_option = click.option(
    "--format",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Format of the input, such as jsonl, parquet, text, html or warc.",
)
space_option = click.option("--space", metavar="NAME", help="Name of the vector space.  [default: DB's default space]")
as_of_option = click.option(
    "--as-of", type=snapshot_ref, metavar="N", help="Read snapshot N, a number or a name.  [default: the newest]"
)


text_field_options = combine(
    click.option("--text-field", metavar="NAME", help="Field with the text.  [default: common names]"),
    click.option("--key-field", metavar="NAME", help="For key-value corpora: the field that is embedded."),
    click.option("--value-field", metavar="NAME", help="For key-value corpora: the field that follows the key."),
)
"""Which fields of a record are its text."""
record_options = combine(
    format_option,
    click.option("--id-field", metavar="NAME", help="Field with the document id.  [default: common names]"),
    text_field_options,
    click.option(
        "--front-matter",
        type=click.Choice(["text", "metadata"]),
        default=IngestParams.front_matter,
        show_default=True,
        help="Whether the YAML or TOML header of a text or Markdown file is text or metadata.",
    ),
    click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Read only input files that match PATTERN, such as '*.md' or 'docs/**'. Repeat the option for several.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Do not read input files that match PATTERN, such as '*.svg' or 'node_modules'. Repeat the option for several.",
    ),
)
"""How the records of an input become documents."""
reject_rate_option = click.option(
    "--max-reject-rate",
    type=fraction,
    default=str(IngestParams.max_reject_rate),
    show_default=True,
    metavar="FRACTION",
    help="Commit nothing if more than this fraction of records is rejected.",
)
task_options = combine(
    workers_option, engine_options, memory_option, dry_run_option, progress_option, json_option, pass_session
)
"""The last options of a command that changes the database with worker processes."""
commit_options = combine(dry_run_option, json_option, pass_session)
"""The last options of a command that changes the database without worker processes."""
measure_options = combine(workers_option, memory_option, progress_option, json_option, pass_session)
"""The last options of a command that takes time and changes nothing."""
snapshot_options = combine(as_of_option, json_option, pass_session)
"""The last options of a command that reads a snapshot."""


def confirm(question: str, remedy: str) -> bool:
    """Ask a question on the terminal. Ctrl-C and the end of the input mean no.

    Raises:
        UsageError: there is nobody to ask. The remedy says what to do.
    """
    try:
        return click.confirm(printable(question), err=True)
    except click.Abort:
        if not sys.stdin.isatty():
            raise errors.UsageError("cannot ask for confirmation without a terminal", remedy=remedy) from None
        click.echo(err=True)
        return False


def is_given(name: str) -> bool:
    """Whether the user set an option of the running command."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def check_engine(session: Session, workers: int | None) -> None:
    """Raises UsageError for options that the engine does not have."""
    if session.engine != "workers" and session.lease_s is not None:
        raise click.UsageError("--lease needs --engine workers.")
    if session.engine != "ray" and session.ray_address is not None:
        raise click.UsageError("--ray-address needs --engine ray.")
    if session.engine == "workers" and workers is not None:
        raise click.UsageError(
            "An engine of workers has no number of processes. Start 'retrodb work' as often as you like."
        )
    if session.engine == "ray" and workers is not None:
        raise click.UsageError("A Ray cluster runs as many processes as it has room for. Leave out --workers.")


def open_database(session: Session, path: str, workers: int | None = None) -> Database:
    """Open the database that a command works on."""
    from retrodb.database import Database

    check_engine(session, workers)
    database = Database(
        path,
        workers=workers,
        memory_bytes=session.memory_bytes,
        progress=session.shows_progress,
        engine=session.engine,
        lease_s=session.lease_s,
        ray_address=session.ray_address,
    )
    database.keep_command_line(click.get_current_context().command_path.split()[1:], session.arguments, path)
    return database
