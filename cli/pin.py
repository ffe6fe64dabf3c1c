"""`retrodb pin`"""

from __future__ import annotations

import click

from .option_types import snapshot_ref
from .options import WRITING_EXITS, Command, Session, commit_options, database_argument, open_database


@click.command(cls=Command, example="retrodb pin my.retrodb 12 --name release-1", exits=WRITING_EXITS)
@database_argument
@click.argument("snapshot", type=snapshot_ref, required=False, metavar="[N]")
@click.option(
    "--name",
    required=True,
    metavar="NAME",
    help="Name of the snapshot: letters, digits, '.', '_' and '-', and not only digits.",
)
@click.option("--move", is_flag=True, help="Take the name from the snapshot that has it.")
@click.option("--remove", is_flag=True, help="Remove the name. Then the snapshot can expire.")
@commit_options
def command(
    session: Session, database: str, snapshot: int | str | None, name: str, move: bool, remove: bool, dry_run: bool
) -> None:
    """Name snapshot N of DB, and protect it from expiring, for example while a training run reads it.

    The name stands wherever a number of a snapshot does: 'retrodb stats DB --as-of release-1'. Without N, name the newest
    snapshot.
    """
    if remove and (snapshot is not None or move):
        raise click.UsageError("--remove needs the name of a pin, and nothing else.")
    db = open_database(session, database)
    result = db.unpin(name, dry_run=dry_run) if remove else db.pin(snapshot, name=name, move=move, dry_run=dry_run)
    session.output.result(result)
