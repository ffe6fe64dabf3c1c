"""`retrodb compare`"""

from __future__ import annotations

from typing import Any

import click

from .options import READING_EXITS, Command, Session, database_argument, measures, open_database


@click.command(cls=Command, example="retrodb compare my.retrodb default bge", exits=READING_EXITS)
@database_argument
@click.argument("first", metavar="SPACE")
@click.argument("second", metavar="SPACE")
@click.option(
    "--k", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Neighbours to compare."
)
@click.option("--queries", type=click.Path(dir_okay=False), metavar="FILE", help="Judged queries, with --qrels.")
@click.option("--qrels", type=click.Path(dir_okay=False), metavar="FILE", help="Their judgements, TREC or JSON Lines.")
@click.option(
    "--minutes", type=float, metavar="N", help="Also train a small RETRO model for so long on each space's tables."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the samples.")
@measures
def command(session: Session, /, database: str, workers: int | None, **options: Any) -> None:
    """Set two spaces of DB side by side: what they find, how well, how fast, and for how many bytes."""
    session.output.result(open_database(session, database, workers).compare(**options))
