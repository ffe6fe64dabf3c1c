"""`retrodb pin`"""

from __future__ import annotations

import click

from .options import WRITING_EXITS, Command, Session, commit_options, database_argument, open_database


@click.command(cls=Command, example="retrodb pin my.retrodb 12 --name training-7", exits=WRITING_EXITS)
@database_argument
@click.argument("snapshot", type=click.IntRange(min=0), required=False, metavar="[N]")
@click.option("--name", required=True, metavar="NAME", help="Name of the pin, such as the name of a training run.")
@click.option("--remove", is_flag=True, help="Remove the pin.")
@commit_options
def command(session: Session, database: str, snapshot: int | None, name: str, remove: bool, dry_run: bool) -> None:
    """Protect snapshot N of DB from expiring, for example while a training run reads it. Without N, pin the newest one."""
    if remove and snapshot is not None:
        raise click.UsageError("--remove needs the name of a pin, and no snapshot.")
    db = open_database(session, database)
    session.output.result(db.unpin(name, dry_run=dry_run) if remove else db.pin(snapshot, name=name, dry_run=dry_run))
