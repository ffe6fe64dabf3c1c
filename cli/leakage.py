"""`retrodb leakage`"""

from __future__ import annotations

from typing import Any

import click

from .options import (
    READING_EXITS,
    Command,
    Session,
    database_argument,
    device_option,
    open_database,
    reads,
    space_option,
)
from .render_retro import leakage


@click.command(
    cls=Command,
    example="retrodb leakage my.retrodb --against wikitext103-test.jsonl\nretrodb leakage my.retrodb --queries heldout",
    exits=READING_EXITS,
)
@database_argument
@click.option("--against", metavar="FILE", help="Documents whose chunks are looked up: a test-set file.")
@click.option("--queries", metavar="NAME", help="Instead of a file: an embedded query set.")
@click.option("--text-template", metavar="TEXT", help='Fields of a record of the file, as "{question} {choices}".')
@click.option("--k", type=int, default=10, show_default=True, metavar="N", help="Nearest neighbours of a chunk.")
@space_option
@device_option
@reads
def command(session: Session, /, database: str, **options: Any) -> None:
    """Tell how much of some chunks their nearest neighbours in DB give away word for word.

    r(C) is the longest run of tokens that a chunk shares with one of its neighbours, each read with its continuation, over the
    tokens of a chunk. No model is needed.
    """
    session.output.result(open_database(session, database).leakage(**options), leakage)
