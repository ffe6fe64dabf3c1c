"""`retrodb dedup`"""

from __future__ import annotations

from typing import Any

import click

from retrodb.config import DedupParams

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    dry_run_option,
    json_option,
    open_database,
    pass_session,
    progress_option,
    workers_option,
)
from .render import leak, verdict


@click.command(
    cls=Command, example="retrodb dedup my.retrodb --against wikitext103-test.jsonl --report", exits=WRITING_EXITS
)
@database_argument
@click.argument("more", nargs=-1, metavar="[FILE]...")
@click.option(
    "--against", multiple=True, metavar="FILE", help="Test-set file (JSON Lines, Parquet, text); more may follow."
)
@click.option("--name", metavar="NAME", help="Name of the test set.  [default: the first file's]")
@click.option("--text-template", metavar="TEXT", help='Fields of a test record, as "{question} {choices}".')
@click.option(
    "--rule", default=DedupParams.rule, show_default=True, metavar="RULE", help="jaccard>=X or containment>=X."
)
@click.option(
    "--ngram", type=int, default=DedupParams.ngram, show_default=True, metavar="N", help="Words of a shingle."
)
@click.option(
    "--level",
    type=click.Choice(["document", "chunk"]),
    default=DedupParams.level,
    show_default=True,
    help="What goes: the document, or the chunks that shared shingles touch.",
)
@click.option(
    "--short-texts",
    type=click.Choice(["report", "remove"]),
    default=DedupParams.short_texts,
    show_default=True,
    help="Exact matches of texts too short for a shingle.",
)
@click.option("--max-document-frequency", type=float, metavar="SHARE", help="Containment: ignore shingles more common.")
@click.option("--report", is_flag=True, help="Print who matched whom.")
@workers_option
@dry_run_option
@progress_option
@json_option
@pass_session
def command(
    session: Session,
    /,
    database: str,
    more: tuple[str, ...],
    against: tuple[str, ...],
    name: str | None,
    report: bool,
    workers: int | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Hold the documents of DB against a test set, and take out what the rule calls a leak.

    The test set is remembered: later documents are held against it before anything else is done with them. Without
    files, the screening of the remembered test sets is brought up to date.
    """
    if more and not against:
        raise click.UsageError("Test-set files follow --against.")
    if report and dry_run:
        raise click.UsageError("--report shows what was found and kept; a dry run keeps nothing.")
    db = open_database(session, database, workers)
    results = db.dedup([*against, *more], name=name, dry_run=dry_run, **(options if against else {}))
    session.output.rows(results, verdict)
    if not results:
        session.output.note("No test set is registered. Name its files with --against.")
    if report:
        for result in results:
            session.output.rows(db.leaks(result.testset), leak)
