"""`retrodb testsets`"""

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


@click.command(cls=Command, example="retrodb testsets my.retrodb", exits=READING_EXITS)
@database_argument
@as_of_option
@json_option
@pass_session
def command(session: Session, database: str, as_of: int | None) -> None:
    """List the test sets that DB is held against, and what each of them removed."""
    session.output.rows(open_database(session, database).testsets(as_of=as_of))
