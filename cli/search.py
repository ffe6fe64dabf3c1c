"""`retrodb search`"""

from __future__ import annotations

from functools import partial
from pathlib import Path

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
from .render import search_hit

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command, example='retrodb search my.retrodb "chunked cross-attention" --k 3', exits=READING_EXITS)
@database_argument
@click.argument("texts", metavar="TEXT...", nargs=-1)
@click.option(
    "--file", type=_FILE, metavar="FILE", help="File with queries: one per line, or JSON Lines with a text field."
)
@click.option(
    "--vector", type=_FILE, metavar="FILE", help="File (.npy) with query vectors of the space, of shape (Q, D)."
)
@click.option(
    "--k", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Number of results per query."
)
@space_option
@click.option("--source", metavar="NAME", help="Find only chunks of this source.")
@click.option(
    "--where",
    metavar="SQL",
    help="Find only chunks of documents that match this SQL condition, such as \"metadata->>'lang' = 'en'\".",
)
@click.option(
    "--nprobe",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of inverted lists to search.  [default: as stored for the space, else from a table by number of lists]",
)
@click.option(
    "--recall",
    type=float,
    metavar="FRACTION",
    help="Search as many lists as 'retrodb bench recall' measured for this recall.",
)
@device_option
@memory_option
@snapshot_options
def command(
    session: Session,
    database: str,
    texts: tuple[str, ...],
    file: Path | None,
    vector: Path | None,
    k: int,
    space: str | None,
    source: str | None,
    where: str | None,
    nprobe: int | None,
    recall: float | None,
    device: str,
    as_of: int | str | None,
) -> None:
    """Find the live chunks of DB nearest to each TEXT, and show the text that follows them."""
    if (bool(texts), file is not None, vector is not None).count(True) != 1:
        raise click.UsageError("Give either TEXT, --file or --vector.")
    from retrodb.database import read_queries

    path = file or vector
    queries = texts if path is None else read_queries(path, as_vectors=vector is not None)
    searcher = open_database(session, database).searcher(space=space, source=source, where=where, as_of=as_of)
    hits = searcher.hits(queries, k, nprobe=nprobe, recall=recall, device=device)
    for note in searcher.notes(k, hits):
        session.output.note(note)
    session.output.rows(
        (hit for hits_of_query in hits for hit in hits_of_query),
        partial(search_hit, queries=queries),
        empty="No chunk was found.",
    )
