"""`retrodb testsets`"""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, open_database, reads


@click.command(cls=Command, example="retrodb testsets my.retrodb", exits=READING_EXITS)
@database_argument
@reads
def command(session: Session, database: str, as_of: int | None) -> None:
    """List the test sets that DB is held against, and what each of them removed."""
    session.output.rows(open_database(session, database).testsets(as_of=as_of))
