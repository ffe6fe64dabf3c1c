"""`retrodb gc`"""

from __future__ import annotations

from datetime import timedelta

import click

from .options import WRITING_EXITS, Command, Session, changes, database_argument, duration, open_database


@click.command(cls=Command, example="retrodb gc my.retrodb --keep-snapshots 20", exits=WRITING_EXITS)
@database_argument
@click.option(
    "--grace",
    type=duration,
    default="7d",
    show_default=True,
    metavar="TIME",
    help="Delete what was found unneeded so long ago and still is; longer than any command or reader runs.",
)
@click.option(
    "--keep-snapshots",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="The newest ones stay readable, pinned ones besides.",
)
@click.option(
    "--abandon-runs",
    type=duration,
    metavar="TIME",
    help="Give up runs that never committed and wrote nothing for so long.  [default: none]",
)
@changes
def command(
    session: Session,
    database: str,
    grace: timedelta,
    keep_snapshots: int,
    abandon_runs: timedelta | None,
    dry_run: bool,
) -> None:
    """Let old snapshots of DB expire, and delete files that nothing needs: marked first, deleted after the grace."""
    session.output.result(
        open_database(session, database).gc(
            grace=grace, keep_snapshots=keep_snapshots, abandon_runs=abandon_runs, dry_run=dry_run
        )
    )
