"""`retrodb exposure`"""

from __future__ import annotations

from typing import Any

import click

from .options import READING_EXITS, Command, Session, database_argument, open_database, reads
from .render import exposure


@click.command(
    cls=Command,
    example="retrodb exposure my.retrodb --testset wikitext103-test --consumed-samples 1000000",
    exits=READING_EXITS,
)
@database_argument
@click.option("--testset", required=True, metavar="NAME", help="A registered test set.")
@click.option("--table", metavar="NAME", help="Neighbour table.  [default: that of DB's own chunks]")
@click.option(
    "--consumed-samples",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Rows of the table, in order, that the training run has seen.",
)
@reads
def command(session: Session, /, database: str, testset: str, **options: Any) -> None:
    """Tell which rows of a neighbour table met a test set.

    A row meets it when its own text, a neighbour or a neighbour's continuation shares an n-gram with an item.
    """
    session.output.result(open_database(session, database).exposure(testset, **options), exposure)
