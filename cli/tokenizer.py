"""`retrodb tokenizer train`"""

from __future__ import annotations

import click

from retrodb import errors

from .options import Command, Session, format_option, json_option, pass_session, text_field_options


@click.group()
def command() -> None:
    """Train a tokenizer on your own text."""


@command.command(
    cls=Command,
    example="retrodb tokenizer train articles.jsonl.zst --out tokenizer.json --vocab-size 32000",
    exits=[errors.EXIT_NO_SPACE],
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, metavar="FILE", help="File to write the tokenizer to.")
@click.option(
    "--vocab-size", type=int, default=32_000, show_default=True, metavar="N", help="Largest number of tokens."
)
@format_option
@text_field_options
@json_option
@pass_session
def train(
    session: Session,
    inputs: tuple[str, ...],
    out: str,
    vocab_size: int,
    format: str,
    text_field: str | None,
    key_field: str | None,
    value_field: str | None,
) -> None:
    """Train a byte-level BPE tokenizer on the documents in INPUT, for 'retrodb init --tokenizer FILE'."""
    from retrodb.database import train_tokenizer

    session.output.result(
        train_tokenizer(
            inputs,
            out,
            vocab_size=vocab_size,
            format=format,
            text_field=text_field,
            key_field=key_field,
            value_field=value_field,
        )
    )
