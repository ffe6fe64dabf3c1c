"""`retrodb eval-retrieval`"""

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


@click.command(
    cls=Command,
    example="retrodb eval-retrieval my.retrodb --queries queries.jsonl --qrels test.tsv",
    exits=READING_EXITS,
)
@database_argument
@click.option("--queries", required=True, metavar="FILE", help="JSON Lines file with an id and a text per query.")
@click.option(
    "--qrels",
    required=True,
    metavar="FILE",
    help="File with relevance judgements, in TREC format or JSON Lines as in BEIR.",
)
@click.option("--k", type=int, default=100, show_default=True, metavar="N", help="Number of documents for recall@k.")
@space_option
@click.option(
    "--nprobe",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of inverted lists to search.  [default: as stored for the space, else from a table by number of lists]",
)
@device_option
@memory_option
@snapshot_options
def command(
    session: Session,
    database: str,
    queries: str,
    qrels: str,
    k: int,
    space: str | None,
    nprobe: int | None,
    device: str,
    as_of: int | str | None,
) -> None:
    """Compare the documents that DB finds with relevance judgements: nDCG@10, recall@k and MRR.

    The rank of a document is the rank of its best chunk. Judgements name a document by its id in its source.
    """
    db = open_database(session, database)
    result = db.eval_retrieval(
        queries=queries, qrels=qrels, k=k, space=space, nprobe=nprobe, device=device, as_of=as_of
    )
    session.output.result(result)
    if result.num_missing_documents:
        session.output.note(
            f"{result.num_missing_documents:,} of {result.num_judged_documents:,} judged documents are not in the database."
        )
    if result.num_duplicate_judgements:
        session.output.note(
            f"{result.num_duplicate_judgements:,} judgements repeat a query and a document. The last one of each counts."
        )
