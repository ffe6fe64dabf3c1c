"""`retrodb filter`"""

from __future__ import annotations

import click

from .options import WRITING_EXITS, Command, Session, changes, choice_options, database_argument, open_database
from .render_screen import filtered


@click.command(
    cls=Command,
    example="""retrodb filter my.retrodb --where "toxicity > 0.02 and metadata->>'lang' = 'en'" --reason toxic --dry-run""",
    exits=WRITING_EXITS,
)
@database_argument
@choice_options
@click.option(
    "--reason", default="filter", show_default=True, metavar="NAME", help="Of the deletion; undelete takes it back."
)
@changes
def command(
    session: Session,
    database: str,
    where: str | None,
    doc_ids: list[str] | None,
    source: str | None,
    reason: str,
    dry_run: bool,
) -> None:
    """Delete documents of DB for a reason. Nothing that reads gives any of their chunks from then on.

    Several choices together mean the documents that all of them name.
    """
    db = open_database(session, database)
    result = db.filter(where=where, doc_ids=doc_ids, source=source, reason=reason, dry_run=dry_run)
    session.output.result(result, filtered)
