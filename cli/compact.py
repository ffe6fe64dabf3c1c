"""`retrodb compact`"""

from __future__ import annotations

import click

from .options import WRITING_EXITS, Command, Session, database_argument, open_database, runs_tasks, share


@click.command(cls=Command, example="retrodb compact my.retrodb --min-deleted 5%", exits=WRITING_EXITS)
@database_argument
@click.option(
    "--min-deleted",
    type=share,
    default="10%",
    show_default=True,
    metavar="SHARE",
    help="Deleted rows of a file from which on it is written anew.",
)
@runs_tasks
def command(session: Session, database: str, min_deleted: float, workers: int | None, dry_run: bool) -> None:
    """Drop the deleted rows of DB, join small neighbouring files, filter and merge index parts, fold table patches.

    Ids stay and no answer changes. 'retrodb gc' frees the space; what was dropped can then be restored no more.
    """
    session.output.result(open_database(session, database, workers).compact(min_deleted=min_deleted, dry_run=dry_run))
