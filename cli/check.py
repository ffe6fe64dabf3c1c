"""`retrodb check`"""

from __future__ import annotations

from datetime import timedelta

import click

from retrodb import errors

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    as_of_option,
    database_argument,
    dry_run_option,
    duration,
    json_option,
    open_database,
    pass_session,
    progress_option,
    share,
)
from .render import check_result
from .render_screen import repaired


@click.command(
    cls=Command, example="retrodb check my.retrodb --read-data-subset 5% --max-duration 1h", exits=WRITING_EXITS
)
@database_argument
@click.option(
    "--read-data", is_flag=True, help="Read every byte and compare its digest.  [default: existence and size]"
)
@click.option(
    "--read-data-subset",
    "subset",
    type=share,
    metavar="SHARE",
    help="Read so much of the bytes, each time the next ones in turn, such as 5%.",
)
@click.option(
    "--max-duration",
    type=duration,
    metavar="TIME",
    help="Stop reading after 90s, 30m or 1h; the next such check goes on from there.",
)
@click.option("--repair", is_flag=True, help="Read every byte, and make again what can be made again.")
@click.option("--accept-loss", is_flag=True, help="With --repair: go on without what nothing can give back.")
@as_of_option
@dry_run_option
@progress_option
@json_option
@pass_session
def command(
    session: Session,
    database: str,
    read_data: bool,
    subset: float | None,
    max_duration: timedelta | None,
    repair: bool,
    accept_loss: bool,
    as_of: int | None,
    dry_run: bool,
) -> int | None:
    """Compare the files of DB with what the snapshot promises, and name each that is missing or damaged.

    A repair makes tokens, vectors, index and tables again from what is left, and moves damaged bytes to quarantine/.
    Documents that nothing can give back are named; without --accept-loss they stay where they are, damaged.
    """
    is_part = subset is not None or max_duration is not None
    if (accept_loss or dry_run) and not repair:
        raise click.UsageError("--accept-loss and --dry-run belong to --repair.")
    if repair and (is_part or as_of is not None):
        raise click.UsageError("A repair reads every byte of the newest snapshot.")
    db = open_database(session, database)
    if repair:
        result = db.repair(accept_loss=accept_loss, dry_run=dry_run)
        session.output.result(result, repaired)
        return None if result.is_whole else errors.EXIT_DAMAGE
    seconds = max_duration.total_seconds() if max_duration else None
    found = db.check(read_data=read_data or is_part, subset=subset, max_duration_s=seconds, as_of=as_of)
    session.output.result(found, check_result)
    return errors.EXIT_DAMAGE if found.damaged else None
