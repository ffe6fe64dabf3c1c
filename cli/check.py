"""`retrodb check`"""

from __future__ import annotations

from datetime import timedelta

import click

from retrodb import errors

from .option_types import duration, fraction
from .options import (
    WRITING_EXITS,
    Command,
    Session,
    as_of_option,
    database_argument,
    device_option,
    dry_run_option,
    engine_options,
    is_given,
    json_option,
    memory_option,
    open_database,
    pass_session,
    progress_option,
    workers_option,
)
from .render import check_result
from .render_screen import database_repair_result


@click.command(
    cls=Command, example="retrodb check my.retrodb --read-data-subset 5% --max-duration 1h", exits=WRITING_EXITS
)
@database_argument
@click.option(
    "--read-data",
    is_flag=True,
    help="Read every file and verify its checksum.  [default: only verify existence and size]",
)
@click.option(
    "--read-data-subset",
    "subset",
    type=fraction,
    metavar="FRACTION",
    help="Read only this fraction of the bytes, such as 5%. The next check continues where this one ends.",
)
@click.option(
    "--max-duration",
    type=duration,
    metavar="TIME",
    help="Stop reading after this time, such as 90s, 30m or 1h. The next check continues where this one ends.",
)
@click.option("--repair", is_flag=True, help="Read every file, and rebuild damaged files where possible.")
@click.option("--accept-loss", is_flag=True, help="With --repair: delete the documents that cannot be recovered.")
@engine_options
@memory_option
@device_option
@as_of_option
@workers_option
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
    device: str,
    as_of: int | str | None,
    workers: int | None,
    dry_run: bool,
) -> int | None:
    """Compare the files of DB with the snapshot, and list missing and damaged files.

    --repair rebuilds tokens, vectors, indexes and tables from other files, and moves damaged bytes to quarantine/. It lists
    the documents that cannot be recovered. Without --accept-loss, it does not change their files.
    """
    is_partial = subset is not None or max_duration is not None
    if not repair and (accept_loss or dry_run or is_given("device")):
        raise click.UsageError("--accept-loss, --device and --dry-run need --repair.")
    if is_given("workers") and not (repair or read_data or is_partial):
        raise click.UsageError("--workers needs --read-data or --repair.")
    if repair and (is_partial or as_of is not None):
        raise click.UsageError("--repair reads every file of the newest snapshot. Remove the other options.")
    db = open_database(session, database, workers)
    if repair:
        result = db.repair(accept_loss=accept_loss, device=device, dry_run=dry_run)
        session.output.result(result, database_repair_result)
        return None if result.is_whole else errors.EXIT_DAMAGE
    max_duration_s = max_duration.total_seconds() if max_duration else None
    check = db.check(read_data=read_data or is_partial, subset=subset, max_duration_s=max_duration_s, as_of=as_of)
    session.output.result(check, check_result)
    return errors.EXIT_DAMAGE if check.damaged else None
