"""`retrodb restore`"""

from __future__ import annotations

import click

from .options import WRITING_EXITS, Command, Session, changes, database_argument, open_database


@click.command(cls=Command, example="retrodb restore my.retrodb 12", exits=WRITING_EXITS)
@database_argument
@click.argument("snapshot", type=click.IntRange(min=0), metavar="N")
@changes
def command(session: Session, database: str, snapshot: int, dry_run: bool) -> None:
    """Make snapshot N of DB the newest, as one more snapshot.

    Pins and registered exports stay as they are, ids that were given are never given again, and what was purged stays dead.
    """
    session.output.result(open_database(session, database).restore(snapshot, dry_run=dry_run))
