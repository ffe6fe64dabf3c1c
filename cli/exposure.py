"""`retrodb exposure`"""

from __future__ import annotations

import click

from .options import (
    READING_EXITS,
    Command,
    Session,
    database_argument,
    engine_options,
    memory_option,
    open_database,
    snapshot_options,
)
from .render import exposure_result


@click.command(
    cls=Command,
    example="retrodb exposure my.retrodb --testset wikitext103-test --consumed-samples 1000000",
    exits=READING_EXITS,
)
@database_argument
@click.option("--testset", required=True, metavar="NAME", help="Name of a registered test set.")
@click.option("--table", metavar="NAME", help="Name of the neighbour table.  [default: the table of DB's own chunks]")
@click.option(
    "--consumed-samples",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Number of rows, from the first one, that the training run has already read.",
)
@engine_options
@memory_option
@snapshot_options
def command(
    session: Session, database: str, testset: str, table: str | None, consumed_samples: int, as_of: int | str | None
) -> None:
    """Find the rows of a neighbour table that share text with a test set.

    A row is exposed if its own text, a neighbour or the continuation of a neighbour shares an n-gram with a test item.
    """
    db = open_database(session, database)
    result = db.exposure(testset, table=table, consumed_samples=consumed_samples, as_of=as_of)
    session.output.result(result, exposure_result)
