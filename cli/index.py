"""`retrodb index`"""

from __future__ import annotations

from typing import Any

import click

from retrodb.config import IndexParams

from .options import WRITING_EXITS, Command, Session, database_argument, open_database, runs_tasks, size, space_option


@click.command(cls=Command, example="retrodb index my.retrodb --factory IVF1024,SQ8", exits=WRITING_EXITS)
@database_argument
@space_option
@click.option(
    "--factory",
    default=IndexParams.factory,
    show_default=True,
    metavar="STRING",
    help="FAISS factory string, or by size.",
)
@click.option(
    "--train-sample", type=click.IntRange(min=1), metavar="N", help="Vectors to train on.  [default: 64 a list]"
)
@click.option(
    "--seed", type=int, default=IndexParams.seed, show_default=True, metavar="N", help="Of sample and k-means."
)
@click.option("--bytes-per-vector", type=click.IntRange(min=1), metavar="N", help="Upper limit for the search code.")
@click.option(
    "--memory",
    "memory_bytes",
    type=size,
    default=f"{IndexParams.memory_bytes >> 30}GiB",
    show_default=True,
    metavar="SIZE",
    help="What a searching machine may use; larger search codes are memory-mapped, and parts of more are not merged.",
)
@click.option("--retrain", is_flag=True, help="Train a new codebook and index everything anew.")
@runs_tasks
def command(session: Session, /, database: str, workers: int | None, **options: Any) -> None:
    """Train the codebook of a space of DB, if it has none, index what is embedded and not yet indexed, and merge small parts."""
    session.output.result(open_database(session, database, workers).index(**options))
