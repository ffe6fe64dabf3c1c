"""`retrodb index`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from retrodb.config import IndexParams

from .option_types import size
from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    is_given,
    open_database,
    space_option,
    task_options,
)

if TYPE_CHECKING:
    from retrodb.options import IndexOptions


_OF_INDEX = ("factory", "train_sample", "seed", "bytes_per_vector", "search_memory_bytes", "retrain", "workers")


@click.command(
    cls=Command,
    example="""
    retrodb index my.retrodb --factory IVF1024,SQ8
    retrodb index my.retrodb --export-faiss my.faiss
    """,
    exits=WRITING_EXITS,
)
@database_argument
@space_option
@click.option(
    "--factory",
    default=IndexParams.factory,
    show_default=True,
    metavar="STRING",
    help="FAISS factory string. 'auto' chooses one by size.",
)
@click.option(
    "--train-sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of vectors to train on.  [default: 64 per inverted list]",
)
@click.option(
    "--seed",
    type=int,
    default=IndexParams.seed,
    show_default=True,
    metavar="N",
    help="Random seed of the sample and of k-means.",
)
@click.option(
    "--bytes-per-vector", type=click.IntRange(min=1), metavar="N", help="Size limit of the search code of one vector."
)
@click.option(
    "--search-memory",
    "search_memory_bytes",
    type=size,
    default=f"{IndexParams.search_memory_bytes >> 30}GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory of the machine that will search the index later, such as 8GiB. It chooses the type of the index. --memory "
    "limits this command.",
)
@click.option("--retrain", is_flag=True, help="Train a new codebook, and index all vectors again.")
@click.option(
    "--export-faiss",
    "out",
    metavar="OUT",
    help="Write the index as one file OUT, a path or URL, that faiss.read_index opens, with the ids of live chunks."
    " Indexes nothing.",
)
@task_options
def command(
    session: Session,
    /,
    database: str,
    space: str | None,
    retrain: bool,
    out: str | None,
    workers: int | None,
    dry_run: bool,
    **options: Unpack[IndexOptions],
) -> None:
    """Index the vectors of a space of DB that are not indexed yet, and merge small index parts.

    If the space has no codebook yet, the command trains one.
    """
    if out is not None and any(map(is_given, _OF_INDEX)):
        raise click.UsageError("--export-faiss writes the index that is there. Remove the other options of the index.")
    db = open_database(session, database, workers)
    if out is not None:
        session.output.result(db.export_faiss(out, space=space, dry_run=dry_run))
        return
    session.output.result(db.index(space=space, retrain=retrain, dry_run=dry_run, **options))
