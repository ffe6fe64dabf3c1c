"""`retrodb stats`. Its look follows from the fields of `Stats`: see output.py."""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, open_database, snapshot_options


@click.command(cls=Command, example="retrodb stats my.retrodb", exits=READING_EXITS)
@database_argument
@snapshot_options
def command(session: Session, database: str, as_of: int | str | None) -> None:
    """Show the counts and sizes of everything in DB."""
    session.output.result(open_database(session, database).stats(as_of=as_of))
