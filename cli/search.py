"""`retrodb search`"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from .options import (
    READING_EXITS,
    Command,
    Session,
    as_of_option,
    database_argument,
    device_option,
    json_option,
    open_database,
    pass_session,
    space_option,
)
from .render import search_hit


@click.command(cls=Command, example='retrodb search my.retrodb "chunked cross-attention" --k 3', exits=READING_EXITS)
@database_argument
@click.argument("text")
@click.option("--k", type=int, default=5, show_default=True, metavar="N", help="Results.")
@space_option
@click.option("--source", metavar="NAME", help="Only chunks of this source.")
@click.option(
    "--nprobe", type=click.IntRange(min=1), metavar="N", help="Lists to look through.  [default: the space's own]"
)
@device_option
@as_of_option
@json_option
@pass_session
def command(session: Session, /, database: str, text: str, **options: Any) -> None:
    """Find the live chunks of DB nearest to TEXT, and what follows them."""
    [hits] = open_database(session, database).search([text], **options)
    session.output.rows(hits, partial(search_hit, query=text))
