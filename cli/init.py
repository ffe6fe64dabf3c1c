"""`retrodb init`"""

from __future__ import annotations

from typing import Any

import click

from retrodb import errors
from retrodb.config import InitParams

from .options import Command, Session, changes, database_argument, open_database


@click.command(
    cls=Command,
    example="retrodb init my.retrodb --tokenizer gpt2",
    exits=[errors.EXIT_NO_SPACE, errors.EXIT_CONFLICT],
)
@database_argument
@click.option(
    "--tokenizer",
    required=True,
    metavar="NAME",
    help="The language model's tokenizer: a file, a folder, or a hub name.",
)
@click.option(
    "--chunk-tokens",
    type=int,
    default=InitParams.chunk_tokens,
    show_default=True,
    metavar="N",
    help="Tokens of one chunk.",
)
@click.option(
    "--min-key-tokens",
    type=int,
    default=InitParams.min_key_tokens,
    show_default=True,
    metavar="N",
    help="A shorter tail of a document serves as continuation only.",
)
@click.option(
    "--encoder",
    default=InitParams.encoder,
    show_default=True,
    metavar="NAME",
    help="Encoder of the default space: a folder, a hub name, or hashing:DIM.",
)
@click.option(
    "--preset", type=click.Choice(["retro"]), help="retro: encoder and metric of the paper (BERT, squared L2)."
)
@changes
def command(session: Session, /, database: str, dry_run: bool, **options: Any) -> None:
    """Create an empty database DB. What is chosen here can never change."""
    from retrodb.database import create, plan_create

    if dry_run:
        session.output.result(plan_create(**options))
        return
    create(database, **options)
    session.output.result(open_database(session, database).stats())
