"""`retrodb stats`"""

from __future__ import annotations

import click

from .options import (
    READING_EXITS,
    Command,
    Session,
    as_of_option,
    database_argument,
    json_option,
    open_database,
    pass_session,
)


@click.command(cls=Command, example="retrodb stats my.retrodb", exits=READING_EXITS)
@database_argument
@as_of_option
@json_option
@pass_session
def command(session: Session, database: str, as_of: int | None) -> None:
    """Count what is in DB, and what it takes."""
    session.output.result(open_database(session, database).stats(as_of=as_of))
