"""`retrodb compare`"""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, measure_options, open_database


@click.command(cls=Command, example="retrodb compare my.retrodb default bge", exits=READING_EXITS)
@database_argument
@click.argument("first", metavar="SPACE")
@click.argument("second", metavar="SPACE")
@click.option(
    "--k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of neighbours to compare.",
)
@click.option(
    "--queries",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="File with queries that --qrels has judgements for.",
)
@click.option(
    "--qrels",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="File with relevance judgements, in TREC format or JSON Lines.",
)
@click.option(
    "--minutes",
    type=float,
    metavar="N",
    help="Also train a small RETRO model for N minutes on a neighbour table of each space.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed of the samples.")
@measure_options
def command(
    session: Session,
    database: str,
    first: str,
    second: str,
    k: int,
    queries: str | None,
    qrels: str | None,
    minutes: float | None,
    seed: int,
    workers: int | None,
) -> None:
    """Compare two spaces of DB: the neighbours they find, recall, retrieval quality, latency and size."""
    db = open_database(session, database, workers)
    session.output.result(db.compare(first, second, k=k, queries=queries, qrels=qrels, minutes=minutes, seed=seed))
