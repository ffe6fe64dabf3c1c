"""`retrodb neighbours`"""

from __future__ import annotations

from typing import Any

import click

from retrodb.config import NeighboursParams

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    dry_run_option,
    json_option,
    open_database,
    pass_session,
    progress_option,
    space_option,
    workers_option,
)


@click.command(cls=Command, example="retrodb neighbours my.retrodb --k 2", exits=WRITING_EXITS)
@database_argument
@click.option(
    "--queries", default="self", show_default=True, metavar="NAME", help="Query set; self is DB's own chunks."
)
@space_option
@click.option("--table", metavar="NAME", help="Name of the table.  [default: the query set's]")
@click.option("--k", type=int, default=NeighboursParams.k, show_default=True, metavar="N", help="Neighbours of a row.")
@click.option(
    "--slack",
    type=int,
    default=NeighboursParams.slack,
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
    help="What a row must not meet (document, content, cluster); may be repeated.",
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
@workers_option
@dry_run_option
@progress_option
@json_option
@pass_session
def command(session: Session, /, database: str, workers: int | None, **options: Any) -> None:
    """Write a table of the nearest live chunks of every row of a query set. A missing neighbour is -1."""
    session.output.result(open_database(session, database, workers).neighbours(**options))
