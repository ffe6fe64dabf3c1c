"""`retrodb undelete`"""

from __future__ import annotations

import click

from .options import WRITING_EXITS, Command, Session, changes, choice_options, database_argument, open_database
from .render_screen import undeleted


@click.command(cls=Command, example="retrodb undelete my.retrodb --reason toxic", exits=WRITING_EXITS)
@database_argument
@click.option("--reason", required=True, metavar="NAME", help="That is to hold no longer.")
@choice_options
@changes
def command(
    session: Session,
    database: str,
    reason: str,
    where: str | None,
    doc_ids: list[str] | None,
    source: str | None,
    dry_run: bool,
) -> None:
    """End a reason's hold on the documents of DB that it deletes, or on those of them that the options choose.

    What is deleted for another reason too stays deleted; what was purged is gone.
    """
    db = open_database(session, database)
    result = db.undelete(reason, where=where, doc_ids=doc_ids, source=source, dry_run=dry_run)
    session.output.result(result, undeleted)
