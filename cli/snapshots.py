"""`retrodb snapshots`"""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, json_option, open_database, pass_session


@click.command(cls=Command, example="retrodb snapshots my.retrodb", exits=READING_EXITS)
@database_argument
@json_option
@pass_session
def command(session: Session, database: str) -> None:
    """List the versions of DB, oldest first.

    Documents, chunks and size are of all that was ever added; counts are what the command reported. A snapshot that
    expired cannot be read any more; one with a pin never expires.
    """
    session.output.rows(open_database(session, database).snapshots())
