"""`retrodb undelete`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from retrodb.errors import EXIT_REJECTS

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    commit_options,
    database_argument,
    engine_options,
    memory_option,
    open_database,
)
from .render_screen import undelete_result
from .selection import note_unknown, selection_options

if TYPE_CHECKING:
    from retrodb.database import DocumentName


@click.command(cls=Command, example="retrodb undelete my.retrodb --reason toxic", exits=[*WRITING_EXITS, EXIT_REJECTS])
@database_argument
@click.option("--reason", required=True, metavar="NAME", help="Name of the deletion to revoke.")
@selection_options
@engine_options
@memory_option
@commit_options
def command(
    session: Session,
    database: str,
    reason: str,
    where: str | None,
    doc_ids: list[str | DocumentName] | None,
    ignore_unknown: bool,
    source: str | None,
    dry_run: bool,
) -> int:
    """Revoke a reason for deletion. The documents of DB that it deleted come back, or only those that the options select.

    A document that is also deleted for another reason stays deleted. Purged documents do not come back.
    """
    db = open_database(session, database)
    result = db.undelete(reason, where=where, doc_ids=doc_ids, source=source, dry_run=dry_run)
    session.output.result(result, undelete_result)
    return note_unknown(session, result.unknown_names, doc_ids, ignore=ignore_unknown)
