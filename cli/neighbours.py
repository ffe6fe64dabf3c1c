"""`retrodb neighbours`"""

from __future__ import annotations

from typing import Any

import click

from retrodb.config import NeighboursParams

from .options import (
    READING_EXITS,
    WRITING_EXITS,
    Command,
    Session,
    changes,
    database_argument,
    device_option,
    is_given,
    memory_option,
    open_database,
    reads,
    runs_tasks,
    share,
    space_option,
)
from .render import shown_row

table_option = click.option(
    "--table", metavar="NAME", help="Name of the table.  [default: that of DB's own chunks, or the first]"
)
row_option = click.option(
    "--row", type=click.IntRange(min=0), required=True, metavar="N", help="Chunk id, or row of the query set."
)


def _split(_ctx: click.Context, _param: click.Parameter, kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(kind for given in kinds for kind in given.split(","))


class WithCommands(click.Group):
    """A command that has commands of its own beside it: whatever is none of them is an argument of the plain one."""

    plain: click.Command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the plain command, unless the first argument names another one."""
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, parent, **extra)
        return self.plain.make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The plain command stands as its argument."""
        return ["DB", *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command; any other word belongs to the plain one."""
        return super().get_command(ctx, cmd_name) or self.plain


@click.group(cls=WithCommands)
def command() -> None:
    """Write neighbour tables, look at their rows, and edit them."""


@click.command(
    cls=Command,
    example="""
    retrodb neighbours my.retrodb --k 2
    retrodb neighbours my.retrodb --table tenth --sample 0.1 --where "source = 'wiki'"
    """,
    exits=WRITING_EXITS,
)
@database_argument
@click.option(
    "--queries", default="self", show_default=True, metavar="NAME", help="Query set; self is DB's own chunks."
)
@space_option
@click.option("--table", metavar="NAME", help="Name of the table.  [default: the query set's]")
@click.option("--k", type=int, default=NeighboursParams.k, show_default=True, metavar="N", help="Neighbours of a row.")
@click.option(
    "--spare-neighbours",
    type=int,
    default=NeighboursParams.spare_neighbours,
    show_default=True,
    metavar="N",
    help="Kept beyond k, so that deletions need no new search.",
)
@click.option(
    "--exclude",
    multiple=True,
    default=NeighboursParams.exclude,
    show_default=True,
    metavar="KIND",
    callback=_split,
    help="What a row must not meet (document, sequence, content, cluster); with commas, or repeated.",
)
@click.option(
    "--recall",
    type=float,
    default=NeighboursParams.recall,
    show_default=True,
    metavar="SHARE",
    help="To aim at where the search is approximate.",
)
@click.option("--exact", is_flag=True, help="Compare with every vector.")
@click.option("--where", metavar="SQL", help="Only documents that this condition chooses may be neighbours.")
@click.option("--sample", type=share, default="1", metavar="SHARE", help="And of these a share, chosen by their names.")
@click.option("--seed", type=int, default=NeighboursParams.seed, show_default=True, metavar="N", help="Of the sample.")
@memory_option
@device_option
@click.option("--repair", is_flag=True, help="Instead: bring --table, or all tables, up to date by patches.")
@runs_tasks
def compute(session: Session, /, database: str, workers: int | None, repair: bool, **options: Any) -> None:
    """Write a table of the nearest live chunks of every row of a query set. A missing neighbour is -1.

    With --repair no table is computed whole: new chunks are compared with its rows, new rows and rows that deletions
    left with fewer than k neighbours are computed.

    'retrodb neighbours show' shows one row of a table, 'retrodb neighbours edit' bans or pins neighbours of it.
    """
    db = open_database(session, database, workers)
    if not repair:
        session.output.result(db.neighbours(**options))
        return
    for option in filter(is_given, options.keys() - {"table", "dry_run"}):
        name = option.removesuffix("_bytes").replace("_", "-")
        raise click.UsageError(f"--repair keeps what the table was made with: leave --{name} out.")
    results = db.repair_neighbours(table=options["table"], dry_run=options["dry_run"])
    session.output.rows(results)
    if not results:
        session.output.note("There is no neighbour table yet.")


command.plain = compute


@command.command(cls=Command, example="retrodb neighbours show my.retrodb --row 7", exits=READING_EXITS)
@database_argument
@table_option
@row_option
@reads
def show(session: Session, /, database: str, row: int, **options: Any) -> None:
    """Show a row of a table: its chunk, its neighbours, what follows each, and the token runs that they share."""
    session.output.result(open_database(session, database).show_neighbours(row, **options), shown_row)


@command.command(cls=Command, example="retrodb neighbours edit my.retrodb --row 7 --ban 42", exits=WRITING_EXITS)
@database_argument
@table_option
@row_option
@click.option("--ban", type=int, metavar="ID", help="Never give this chunk; the next neighbour takes its place.")
@click.option("--pin", type=int, metavar="ID", help="Give this chunk before all others.")
@click.option("--replace", type=int, nargs=2, metavar="OLD NEW", help="Ban OLD and pin NEW.")
@click.option("--undo", is_flag=True, help="Take this edit back.")
@changes
def edit(session: Session, /, database: str, row: int, **options: Any) -> None:
    """Ban, pin or replace a neighbour of one row. Edits outlive the repair and the rebuild of their table."""
    session.output.result(open_database(session, database).edit_neighbours(row, **options))
