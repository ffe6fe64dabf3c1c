"""`retrodb init`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from retrodb import errors
from retrodb.config import InitParams

from .options import Command, Session, commit_options, database_argument, open_database

if TYPE_CHECKING:
    from retrodb.options import InitOptions


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
    help="Tokenizer of the language model: a file, a folder or a Hugging Face name.",
)
@click.option(
    "--chunk-tokens",
    type=int,
    default=InitParams.chunk_tokens,
    show_default=True,
    metavar="N",
    help="Number of tokens per chunk.",
)
@click.option(
    "--min-key-tokens",
    type=int,
    default=InitParams.min_key_tokens,
    show_default=True,
    metavar="N",
    help="Shortest chunk to embed, in tokens. Shorter last chunks of documents are only continuations.",
)
@click.option(
    "--encoder",
    default=InitParams.encoder,
    show_default=True,
    metavar="NAME",
    help="Encoder of the default space: a folder, a Hugging Face name, or hashing:DIM.",
)
@click.option(
    "--preset",
    type=click.Choice(["retro"]),
    help="'retro' takes the encoder and metric of the RETRO paper (BERT, squared L2).",
)
@commit_options
def command(session: Session, /, database: str, dry_run: bool, **options: Unpack[InitOptions]) -> None:
    """Create an empty database at DB. Its tokenizer and chunk size can never change."""
    from retrodb.database import create, plan_create

    if dry_run:
        session.output.result(plan_create(**options))
        return
    create(database, **options)
    session.output.result(open_database(session, database).stats())
