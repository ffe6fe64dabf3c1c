"""`retrodb check`"""

from __future__ import annotations

import click

from retrodb import errors

from .options import (
    READING_EXITS,
    Command,
    Session,
    as_of_option,
    database_argument,
    json_option,
    open_database,
    pass_session,
    progress_option,
)
from .render import check_result


@click.command(cls=Command, example="retrodb check my.retrodb --read-data", exits=READING_EXITS)
@database_argument
@click.option(
    "--read-data", is_flag=True, help="Read every byte and compare its digest.  [default: existence and size]"
)
@as_of_option
@progress_option
@json_option
@pass_session
def command(session: Session, database: str, read_data: bool, as_of: int | None) -> int | None:
    """Compare the files of DB with what the snapshot promises, and name each that is missing or damaged."""
    result = open_database(session, database).check(read_data=read_data, as_of=as_of)
    session.output.result(result, check_result)
    return errors.EXIT_DAMAGE if result.damaged else None
