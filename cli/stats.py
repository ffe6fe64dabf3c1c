"""`retrodb stats`"""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, open_database, reads


@click.command(cls=Command, example="retrodb stats my.retrodb", exits=READING_EXITS)
@database_argument
@reads
def command(session: Session, database: str, as_of: int | None) -> None:
    """Count what is in DB, and what it takes."""
    session.output.result(open_database(session, database).stats(as_of=as_of))
