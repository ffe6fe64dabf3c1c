"""`retrodb eval-retrieval`"""

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


@click.command(
    cls=Command,
    example="retrodb eval-retrieval my.retrodb --queries queries.jsonl --qrels test.tsv",
    exits=READING_EXITS,
)
@database_argument
@click.option("--queries", required=True, metavar="FILE", help="Queries: JSON Lines with an id and a text.")
@click.option("--qrels", required=True, metavar="FILE", help="Judgements: TREC's columns, or JSON Lines as in BEIR.")
@click.option("--k", type=int, default=100, show_default=True, metavar="N", help="Depth of the recall.")
@space_option
@click.option(
    "--nprobe", type=click.IntRange(min=1), metavar="N", help="Lists to look through.  [default: the space's own]"
)
@device_option
@reads
def command(session: Session, /, database: str, **options: Any) -> None:
    """Compare the documents that DB finds with judgements: nDCG@10, recall@k and MRR.

    A document is ranked by its best chunk, and named by the id that it has in its source.
    """
    session.output.result(open_database(session, database).eval_retrieval(**options))
