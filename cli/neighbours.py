"""`retrodb neighbours`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from retrodb.config import NeighboursParams

from .option_types import fraction
from .options import (
    READING_EXITS,
    WRITING_EXITS,
    Command,
    Session,
    commit_options,
    database_argument,
    device_option,
    is_given,
    open_database,
    snapshot_options,
    space_option,
    task_options,
)
from .render import shown_row

if TYPE_CHECKING:
    from retrodb.options import NeighboursOptions

table_option = click.option(
    "--table", metavar="NAME", help="Name of the table.  [default: the table of DB's own chunks, or the first one]"
)
row_option = click.option(
    "--row", type=click.IntRange(min=0), required=True, metavar="N", help="Chunk id, or row of the query set."
)

_REPAIR_OPTIONS = {"table", "memory_bytes", "device", "workers", "dry_run"}


def _split(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(kind for value in values for kind in value.split(","))


class DefaultCommandGroup(click.Group):
    """A group with a default command: it runs if the first argument is not the name of another command."""

    default: click.Command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """The context of the default command, unless the first argument names another one."""
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, parent, **extra)
        return self.default.make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands. The default command is listed by its argument."""
        return ["DB", *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command with this name, or the default command."""
        return super().get_command(ctx, cmd_name) or self.default


@click.group(cls=DefaultCommandGroup)
def command() -> None:
    """Compute neighbour tables, show their rows, and edit them."""


@click.command(
    cls=Command,
    example="""
    retrodb neighbours my.retrodb --k 2
    retrodb neighbours my.retrodb --table tenth --sample 0.1 --where "source = 'wiki'"
    retrodb neighbours my.retrodb --repair
    """,
    exits=WRITING_EXITS,
)
@database_argument
@click.option(
    "--queries", default="self", show_default=True, metavar="NAME", help="Query set. 'self' is DB's own chunks."
)
@space_option
@click.option("--table", metavar="NAME", help="Name of the table.  [default: name of the query set]")
@click.option(
    "--k", type=int, default=NeighboursParams.k, show_default=True, metavar="N", help="Number of neighbours per row."
)
@click.option(
    "--spare-neighbours",
    type=int,
    default=NeighboursParams.spare_neighbours,
    show_default=True,
    metavar="N",
    help="Number of additional neighbours per row. They replace neighbours that are deleted later.",
)
@click.option(
    "--exclude",
    multiple=True,
    default=NeighboursParams.exclude,
    show_default=True,
    metavar="KIND",
    callback=_split,
    help="Chunks that may not be neighbours of a row: those of the same document, sequence, content or cluster. "
    "Separate several kinds with commas.",
)
@click.option(
    "--recall",
    type=float,
    default=NeighboursParams.recall,
    show_default=True,
    metavar="FRACTION",
    help="Target recall of an approximate search.",
)
@click.option("--exact", is_flag=True, help="Compare every row with every vector.")
@click.option("--where", metavar="SQL", help="Only documents that match this SQL condition can be neighbours.")
@click.option(
    "--sample",
    type=fraction,
    default="1",
    metavar="FRACTION",
    help="Only this fraction of documents can be neighbours. A hash chooses them.  [default: 1]",
)
@click.option(
    "--seed", type=int, default=NeighboursParams.seed, show_default=True, metavar="N", help="Random seed of --sample."
)
@click.option(
    "--route-ranges",
    type=click.IntRange(min=0),
    default=NeighboursParams.route_ranges,
    show_default=True,
    metavar="N",
    help="Cut the inverted lists into N ranges and let each row read few of them, chosen by expected gain. A join that is split "
    "then exchanges less, for more comparisons. 0 switches it off: each row reads its nearest lists.",
)
@device_option
@click.option(
    "--list-ranges",
    type=click.IntRange(min=1),
    metavar="N",
    help="Split the work into N ranges of inverted lists. They change no byte of the table.  "
    "[default: by the number of vectors and --memory]",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Update --table, or all tables, after chunks were added or deleted. Only rows that change are written.",
)
@task_options
def compute(
    session: Session,
    /,
    database: str,
    queries: str,
    space: str | None,
    table: str | None,
    device: str,
    list_ranges: int | None,
    repair: bool,
    workers: int | None,
    dry_run: bool,
    **options: Unpack[NeighboursOptions],
) -> None:
    """Compute a table with the nearest live chunks of every row of a query set. A missing neighbour is -1.

    --repair compares new chunks with the rows of a table. It computes only new rows, and rows that have fewer than k
    neighbours after deletions.

    'retrodb neighbours show' shows a row of a table. 'retrodb neighbours edit' bans or pins neighbours of a row.
    """
    db = open_database(session, database, workers)
    if not repair:
        result = db.neighbours(
            queries=queries,
            space=space,
            table=table,
            device=device,
            list_ranges=list_ranges,
            dry_run=dry_run,
            **options,
        )
        session.output.result(result)
        if result.num_capped:
            session.output.note(
                f"{result.num_capped:,} of {result.num_short:,} rows with fewer than {result.k} neighbours read as many lists as "
                "a row may. The database may have more for them, which --exact finds."
            )
        if result.num_unnamed_rows:
            session.output.note(
                f"{result.num_unnamed_rows:,} of {result.num_rows:,} rows name no document of the database, so that "
                "--exclude sequence excludes nothing from them. 'retrodb queries add --doc-ids' names documents."
            )
        return
    for name in ({"queries", "space", "list_ranges"} | options.keys()) - _REPAIR_OPTIONS:
        if is_given(name):
            raise click.UsageError(f"--repair keeps the parameters of the table. Remove --{name.replace('_', '-')}.")
    results = db.repair_neighbours(table=table, device=device, dry_run=dry_run)
    session.output.rows(results, empty="There is no neighbour table yet.")


command.default = compute


@command.command(cls=Command, example="retrodb neighbours show my.retrodb --row 7", exits=READING_EXITS)
@database_argument
@table_option
@row_option
@snapshot_options
def show(session: Session, database: str, table: str | None, row: int, as_of: int | str | None) -> None:
    """Show a row of a table: its chunk, its neighbours, their continuations, and the runs of tokens that they share."""
    session.output.result(open_database(session, database).show_neighbours(row, table=table, as_of=as_of), shown_row)


@command.command(cls=Command, example="retrodb neighbours edit my.retrodb --row 7 --ban 42", exits=WRITING_EXITS)
@database_argument
@table_option
@row_option
@click.option("--ban", type=int, metavar="ID", help="Ban this chunk. The next neighbour replaces it.")
@click.option("--pin", type=int, metavar="ID", help="Put this chunk before all other neighbours.")
@click.option("--replace", type=int, nargs=2, metavar="OLD NEW", help="Ban chunk OLD and pin chunk NEW.")
@click.option("--undo", is_flag=True, help="Undo this edit.")
@commit_options
def edit(
    session: Session,
    database: str,
    table: str | None,
    row: int,
    ban: int | None,
    pin: int | None,
    replace: tuple[int, int] | None,
    undo: bool,
    dry_run: bool,
) -> None:
    """Ban, pin or replace a neighbour of one row. A repair or a rebuild of the table keeps its edits."""
    db = open_database(session, database)
    result = db.edit_neighbours(row, table=table, ban=ban, pin=pin, replace=replace, undo=undo, dry_run=dry_run)
    session.output.result(result)
