"""`retrodb gc`"""

from __future__ import annotations

from datetime import timedelta

import click

from .option_types import duration
from .options import WRITING_EXITS, Command, Session, commit_options, database_argument, open_database


@click.command(cls=Command, example="retrodb gc my.retrodb --keep-snapshots 20", exits=WRITING_EXITS)
@database_argument
@click.option(
    "--grace",
    type=duration,
    default="7d",
    show_default=True,
    metavar="TIME",
    help="Delete a file after it has been unneeded for this time. Use more than the longest run of a command or reader.",
)
@click.option(
    "--keep-snapshots",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of newest snapshots to keep. Pinned snapshots are kept too.",
)
@click.option(
    "--abandon-runs",
    type=duration,
    metavar="TIME",
    help="Discard unfinished runs that have written nothing for this time.  [default: keep all]",
)
@commit_options
def command(
    session: Session,
    database: str,
    grace: timedelta,
    keep_snapshots: int,
    abandon_runs: timedelta | None,
    dry_run: bool,
) -> None:
    """Expire old snapshots of DB, and delete files that no snapshot needs.

    A file is first marked as unneeded. A later run deletes it when the grace time is over.
    """
    session.output.result(
        open_database(session, database).gc(
            grace=grace, keep_snapshots=keep_snapshots, abandon_runs=abandon_runs, dry_run=dry_run
        )
    )
