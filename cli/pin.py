"""`retrodb pin`"""

from __future__ import annotations

import click

from .options import WRITING_EXITS, Command, Session, changes, database_argument, open_database


@click.command(cls=Command, example="retrodb pin my.retrodb 12 --name training-7", exits=WRITING_EXITS)
@database_argument
@click.argument("snapshot", type=click.IntRange(min=0), required=False, metavar="[N]")
@click.option("--name", required=True, metavar="RUN", help="Who needs the snapshot.")
@click.option("--remove", is_flag=True, help="Take the pin away.")
@changes
def command(session: Session, database: str, snapshot: int | None, name: str, remove: bool, dry_run: bool) -> None:
    """Keep snapshot N of DB, the newest unless it is given, from expiring: a running training reads it."""
    if remove and snapshot is not None:
        raise click.UsageError("--remove takes a --name, and no snapshot.")
    db = open_database(session, database)
    session.output.result(db.unpin(name, dry_run=dry_run) if remove else db.pin(snapshot, name=name, dry_run=dry_run))
