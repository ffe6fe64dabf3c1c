"""`retrodb copy`"""

from __future__ import annotations

import click

from .option_types import snapshot_ref
from .options import (
    WRITING_EXITS,
    Command,
    Session,
    dry_run_option,
    json_option,
    open_database,
    pass_session,
    progress_option,
)
from .render_copy import copy_result


@click.command(cls=Command, example="retrodb copy my.retrodb s3://my-bucket/my.retrodb", exits=WRITING_EXITS)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--snapshot",
    type=snapshot_ref,
    metavar="N",
    help="Copy snapshot N of SRC, a number or a name.  [default: the newest]",
)
@click.option(
    "--since", type=snapshot_ref, metavar="N", help="Copy all snapshots of SRC after snapshot N, which DST has."
)
@click.option(
    "--verify", is_flag=True, help="Read the files that DST has already, and copy those again that are damaged."
)
@click.option(
    "--transfers",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Number of files to copy at the same time.",
)
@dry_run_option
@progress_option
@json_option
@pass_session
def command(
    session: Session,
    source: str,
    destination: str,
    snapshot: int | str | None,
    since: int | str | None,
    verify: bool,
    transfers: int,
    dry_run: bool,
) -> None:
    """Copy a snapshot of the database SRC to DST: directories, or URLs of object stores.

    DST is a new place, or has an earlier copy of SRC. It gets only the files that it lacks, each verified, and the snapshot
    at the end. Commits that only DST has are never overwritten. To continue an interrupted copy, run it again.
    """
    result = open_database(session, source).copy_to(
        destination, snapshot=snapshot, since=since, verify=verify, transfers=transfers, dry_run=dry_run
    )
    session.output.result(result, copy_result)
