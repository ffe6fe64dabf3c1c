"""`retrodb restore`"""

from __future__ import annotations

import click

from .option_types import snapshot_ref
from .options import WRITING_EXITS, Command, Session, commit_options, database_argument, memory_option, open_database


@click.command(cls=Command, example="retrodb restore my.retrodb 12", exits=WRITING_EXITS)
@database_argument
@click.argument("snapshot", type=snapshot_ref, metavar="N")
@memory_option
@commit_options
def command(session: Session, database: str, snapshot: int | str, dry_run: bool) -> None:
    """Return to the state of snapshot N of DB, in a new snapshot.

    N is a number, or the name of a pin. Pins and registered exports do not change. Ids are never used twice. Purged documents
    do not come back.
    """
    session.output.result(open_database(session, database).restore(snapshot, dry_run=dry_run))
