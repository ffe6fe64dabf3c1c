"""`retrodb search`"""

from __future__ import annotations

from functools import partial
from pathlib import Path
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
from .render import search_hit

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command, example='retrodb search my.retrodb "chunked cross-attention" --k 3', exits=READING_EXITS)
@database_argument
@click.argument("texts", metavar="TEXT...", nargs=-1)
@click.option("--file", type=_FILE, metavar="FILE", help="Queries, one a line, or JSON Lines with a text field.")
@click.option("--vector", type=_FILE, metavar="FILE", help="Vectors of this space instead of texts: (Q, D) .npy.")
@click.option("--k", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Results of a query.")
@space_option
@click.option("--source", metavar="NAME", help="Only chunks of this source.")
@click.option("--where", metavar="SQL", help="Only chunks of documents for which this holds: metadata->>'lang' = 'en'.")
@click.option(
    "--nprobe", type=click.IntRange(min=1), metavar="N", help="Lists to look through.  [default: the space's own]"
)
@click.option("--recall", type=float, metavar="SHARE", help="As many lists as were measured for this recall.")
@device_option
@reads
def command(
    session: Session,
    /,
    database: str,
    texts: tuple[str, ...],
    file: Path | None,
    vector: Path | None,
    k: int,
    nprobe: int | None,
    recall: float | None,
    device: str,
    **options: Any,
) -> None:
    """Find the live chunks of DB nearest to each TEXT, and what follows them."""
    if (bool(texts), file is not None, vector is not None).count(True) != 1:
        raise click.UsageError("Give either TEXT, --file or --vector.")
    from retrodb.database import read_queries

    path = file or vector
    queries = texts if path is None else read_queries(path, as_vectors=vector is not None)
    searcher = open_database(session, database).searcher(**options)
    for note in searcher.notes(k):
        session.output.note(note)
    hits = searcher.hits(queries, k, nprobe=nprobe, recall=recall, device=device)
    session.output.rows((hit for own in hits for hit in own), partial(search_hit, queries=queries))
