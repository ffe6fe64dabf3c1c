"""`retrodb diff`"""

from __future__ import annotations

import click

from .option_types import snapshot_ref
from .options import (
    READING_EXITS,
    Command,
    Session,
    database_argument,
    json_option,
    memory_option,
    open_database,
    pass_session,
)


@click.command(cls=Command, example="retrodb diff my.retrodb 3 7 --documents", exits=READING_EXITS)
@database_argument
@click.argument("a", type=snapshot_ref, metavar="A")
@click.argument("b", type=snapshot_ref, metavar="B")
@click.option("--documents", is_flag=True, help="List every document that was added, removed or changed.")
@memory_option
@json_option
@pass_session
def command(session: Session, database: str, a: int | str, b: int | str, documents: bool) -> None:
    """Show the documents that were added, removed and changed between snapshots A and B of DB, by source and reason.

    A and B are numbers, or names of pins.
    """
    result = open_database(session, database).diff(a, b, documents=documents)
    if documents:
        session.output.rows(result.documents, empty="No document changed between these snapshots.")
    else:
        session.output.rows(result.rows, empty="No document changed between these snapshots.")
