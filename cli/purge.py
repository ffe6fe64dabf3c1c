"""`retrodb purge`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from retrodb.errors import EXIT_DAMAGE, EXIT_ERROR, EXIT_REJECTS

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    confirm,
    database_argument,
    open_database,
    task_options,
)
from .render_purge import purge_plan, purge_result
from .selection import doc_ids_option, note_unknown

if TYPE_CHECKING:
    from retrodb.database import DocumentName


@click.command(
    cls=Command, example="retrodb purge my.retrodb --doc-ids takedown.txt", exits=[*WRITING_EXITS, EXIT_REJECTS]
)
@database_argument
@doc_ids_option(required=True)
@click.option("--source", metavar="NAME", help="Source of the ids.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--break-pins", is_flag=True, help="Also expire pinned snapshots that contain the documents.")
@click.option("--include-testsets", is_flag=True, help="Also delete items of test sets that quote the documents.")
@click.option(
    "--all", "search_all", is_flag=True, help="Read all files in each search, also files that did not change."
)
@task_options
def command(
    session: Session,
    database: str,
    doc_ids: list[str | DocumentName],
    ignore_unknown: bool,
    source: str | None,
    yes: bool,
    break_pins: bool,
    include_testsets: bool,
    search_all: bool,
    workers: int | None,
    dry_run: bool,
) -> int | None:
    """Delete documents from DB and from its older snapshots permanently, and prove that no trace of them is left.

    Exit code 5 means that a trace is left, or that a file cannot be read. The output names it. To continue an interrupted
    purge, run the same command again. It does not read files again that have not changed since they were searched, unless you
    add '--all'.
    """
    db = open_database(session, database, workers)
    if dry_run or not yes:
        plan = db.purge(doc_ids, source=source, ignore_unknown=ignore_unknown, dry_run=True)
        if dry_run:
            session.output.result(plan, purge_plan)
            return note_unknown(session, plan.unknown_names, doc_ids, ignore=ignore_unknown)
        session.output.note(purge_plan(plan))
        note_unknown(session, plan.unknown_names, doc_ids, ignore=ignore_unknown)
        if not confirm("Delete these documents permanently?", "Add '--yes' to delete, or '--dry-run' to look."):
            session.output.note("Nothing was deleted.")
            return EXIT_ERROR
        break_pins = break_pins or bool(plan.broken_pins)  # the question listed them
    result = db.purge(
        doc_ids,
        source=source,
        break_pins=break_pins,
        include_testsets=include_testsets,
        ignore_unknown=ignore_unknown,
        search_all=search_all,
    )
    session.output.result(result, purge_result)
    exit_code = note_unknown(session, result.unknown_names, doc_ids, ignore=ignore_unknown)
    return exit_code if result.is_clean else EXIT_DAMAGE
