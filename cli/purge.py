"""`retrodb purge`"""

from __future__ import annotations

import click

from retrodb.errors import EXIT_DAMAGE

from .options import WRITING_EXITS, Command, Session, database_argument, doc_ids_option, open_database, task_options
from .render_purge import purge_plan, purge_result


@click.command(cls=Command, example="retrodb purge my.retrodb --doc-ids takedown.txt", exits=WRITING_EXITS)
@database_argument
@doc_ids_option(required=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--break-pins", is_flag=True, help="Also expire pinned snapshots that contain the documents.")
@click.option("--include-testsets", is_flag=True, help="Also delete items of test sets that quote the documents.")
@task_options
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
    """Delete documents from DB and from its older snapshots permanently, and prove that no trace of them is left.

    Exit code 5 means that a trace is left, or that a file cannot be read. The output names it. To continue an interrupted
    purge, run the same command again.
    """
    db = open_database(session, database, workers)
    if dry_run or not yes:
        plan = db.purge(doc_ids, dry_run=True)
        if dry_run:
            session.output.result(plan, purge_plan)
            return None
        session.output.note(purge_plan(plan))
        click.confirm("Delete these documents permanently?", abort=True, err=True)
        break_pins = break_pins or bool(plan.broken_pins)  # the question listed them
    result = db.purge(doc_ids, break_pins=break_pins, include_testsets=include_testsets)
    session.output.result(result, purge_result)
    return None if result.is_clean else EXIT_DAMAGE
