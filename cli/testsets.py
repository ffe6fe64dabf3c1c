"""`retrodb testsets`"""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, open_database, snapshot_options


@click.command(cls=Command, example="retrodb testsets my.retrodb", exits=READING_EXITS)
@database_argument
@snapshot_options
def command(session: Session, database: str, as_of: int | str | None) -> None:
    """List the registered test sets of DB, and what was deleted because of each of them."""
    session.output.rows(
        open_database(session, database).testsets(as_of=as_of),
        empty="There are no test sets. 'retrodb dedup --against FILE' registers one.",
    )
