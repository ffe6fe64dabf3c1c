"""`retrodb purge`"""

from __future__ import annotations

import click

from retrodb.errors import EXIT_DAMAGE

from .options import WRITING_EXITS, Command, Session, database_argument, names_option, open_database, runs_tasks
from .render_purge import purge_plan, purge_result


@click.command(cls=Command, example="retrodb purge my.retrodb --doc-ids takedown.txt", exits=WRITING_EXITS)
@database_argument
@names_option(required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--break-pins", is_flag=True, help="Let pinned snapshots that hold the documents expire too.")
@click.option("--include-testsets", is_flag=True, help="Take items that quote the documents out of test sets as well.")
@runs_tasks
def command(
    session: Session,
    database: str,
    doc_ids: list[str],
    yes: bool,
    break_pins: bool,
    include_testsets: bool,
    workers: int | None,
    dry_run: bool,
) -> int | None:
    """Take documents out of DB for good, out of its past too, and prove that nothing of them is left.

    Exit code 5 means that something is left, or cannot be read; it is named. Interrupted, the same command goes on.
    """
    db = open_database(session, database, workers)
    if dry_run or not yes:
        plan = db.purge(doc_ids, dry_run=True)
        if dry_run:
            session.output.result(plan, purge_plan)
            return None
        session.output.note(purge_plan(plan))
        click.confirm("Purge them for good?", abort=True, err=True)
        break_pins = break_pins or bool(plan.broken_pins)  # they were named in the question
    result = db.purge(doc_ids, break_pins=break_pins, include_testsets=include_testsets)
    session.output.result(result, purge_result)
    return None if result.is_clean else EXIT_DAMAGE
