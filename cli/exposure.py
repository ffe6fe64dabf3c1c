"""`retrodb exposure`"""

from __future__ import annotations

import click

from .options import (
    READING_EXITS,
    Command,
    Session,
    database_argument,
    json_option,
    open_database,
    pass_session,
)
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
@json_option
@pass_session
def command(session: Session, database: str, testset: str, table: str | None, consumed_samples: int) -> None:
    """Tell which rows of a neighbour table met a test set.

    A row meets it when its own text, a neighbour or a neighbour's continuation shares an n-gram with an item.
    """
    found = open_database(session, database).exposure(testset, table=table, consumed_samples=consumed_samples)
    session.output.result(found, exposure)
