"""`retrodb snapshots`"""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, json_option, open_database, pass_session


@click.command(cls=Command, example="retrodb snapshots my.retrodb", exits=READING_EXITS)
@database_argument
@json_option
@pass_session
def command(session: Session, database: str) -> None:
    """List the snapshots of DB, oldest first.

    Documents, chunks and sizes include deleted ones. Counts are those that the command reported. An expired snapshot can no
    longer be read. A pinned snapshot does not expire.
    """
    session.output.rows(open_database(session, database).snapshots())
