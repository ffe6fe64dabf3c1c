"""`retrodb export`"""

from __future__ import annotations

from typing import Any

import click

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    as_of_option,
    database_argument,
    dry_run_option,
    json_option,
    open_database,
    pass_session,
    progress_option,
    workers_option,
)


@click.command(cls=Command, example="retrodb export my.retrodb out --to parquet", exits=WRITING_EXITS)
@database_argument
@click.argument("out", metavar="OUT")
@click.option("--to", default="parquet", show_default=True, metavar="FORMAT", help="Format of the trainer.")
@click.option("--table", metavar="NAME", help="Neighbour table.  [default: self]")
@as_of_option
@workers_option
@dry_run_option
@progress_option
@json_option
@pass_session
def command(session: Session, /, database: str, out: str, workers: int | None, **options: Any) -> None:
    """Write a neighbour table of DB, with the chunks it names, into the folder OUT."""
    session.output.result(open_database(session, database, workers).export(out, **options))
