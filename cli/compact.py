"""`retrodb compact`"""

from __future__ import annotations

import click

from .option_types import fraction
from .options import WRITING_EXITS, Command, Session, database_argument, open_database, task_options


@click.command(cls=Command, example="retrodb compact my.retrodb --min-deleted 5%", exits=WRITING_EXITS)
@database_argument
@click.option(
    "--min-deleted",
    type=fraction,
    default="10%",
    show_default=True,
    metavar="FRACTION",
    help="Rewrite a file once this fraction of its rows is deleted.",
)
@task_options
def command(session: Session, database: str, min_deleted: float, workers: int | None, dry_run: bool) -> None:
    """Remove deleted rows from the files of DB, and merge small files, index parts and table patches.

    Ids and search results do not change. 'retrodb gc' frees the disk space later. After that, the removed rows cannot be
    restored.
    """
    session.output.result(open_database(session, database, workers).compact(min_deleted=min_deleted, dry_run=dry_run))
