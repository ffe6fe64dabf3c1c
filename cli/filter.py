"""`retrodb filter`"""

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
from .render_screen import filter_result
from .selection import note_unknown, selection_options

if TYPE_CHECKING:
    from retrodb.database import DocumentName


@click.command(
    cls=Command,
    example="""retrodb filter my.retrodb --where "toxicity > 0.02 and metadata->>'lang' = 'en'" --reason toxic --dry-run""",
    exits=[*WRITING_EXITS, EXIT_REJECTS],
)
@database_argument
@selection_options
@click.option(
    "--reason",
    default="filter",
    show_default=True,
    metavar="NAME",
    help="Name of this deletion. 'retrodb undelete --reason NAME' reverses it.",
)
@engine_options
@memory_option
@commit_options
def command(
    session: Session,
    database: str,
    where: str | None,
    doc_ids: list[str | DocumentName] | None,
    ignore_unknown: bool,
    source: str | None,
    reason: str,
    dry_run: bool,
) -> int:
    """Delete documents of DB. Their chunks are no longer found or exported.

    If you give several of --where, --doc-ids and --source, a document must match all of them.
    """
    db = open_database(session, database)
    result = db.filter(where=where, doc_ids=doc_ids, source=source, reason=reason, dry_run=dry_run)
    session.output.result(result, filter_result)
    return note_unknown(session, result.unknown_names, doc_ids, ignore=ignore_unknown)
