"""`retrodb leakage`"""

from __future__ import annotations

import click

from .options import (
    READING_EXITS,
    Command,
    Session,
    database_argument,
    device_option,
    memory_option,
    open_database,
    snapshot_options,
    space_option,
)
from .render import unused_text_fields
from .render_retro import leakage_result


@click.command(
    cls=Command,
    example="retrodb leakage my.retrodb --against wikitext103-test.jsonl\nretrodb leakage my.retrodb --queries heldout",
    exits=READING_EXITS,
)
@database_argument
@click.option("--against", metavar="FILE", help="File with the documents to look up, such as a test set.")
@click.option("--queries", metavar="NAME", help="Name of an embedded query set. Replaces --against.")
@click.option(
    "--text-template", metavar="TEXT", help='Template for the text of a record, such as "{question} {choices}".'
)
@click.option(
    "--k", type=int, default=10, show_default=True, metavar="N", help="Number of nearest neighbours per chunk."
)
@space_option
@device_option
@memory_option
@snapshot_options
def command(
    session: Session,
    database: str,
    against: str | None,
    queries: str | None,
    text_template: str | None,
    k: int,
    space: str | None,
    device: str,
    as_of: int | str | None,
) -> None:
    """Measure how many tokens the chunks of a file share with their nearest neighbours in DB. No model is needed.

    r(C) is the length of the longest run of tokens that a chunk shares with one of its neighbours and its continuation,
    divided by the tokens per chunk.
    """
    db = open_database(session, database)
    result = db.leakage(
        against=against, queries=queries, text_template=text_template, k=k, space=space, device=device, as_of=as_of
    )
    session.output.result(result, leakage_result)
    if result.unused_text_fields:
        session.output.note(unused_text_fields(result.unused_text_fields))
