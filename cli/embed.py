"""`retrodb embed`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    device_option,
    open_database,
    space_option,
    task_options,
)

if TYPE_CHECKING:
    from retrodb.options import EmbedOptions


@click.command(cls=Command, example="retrodb embed my.retrodb --device cuda", exits=WRITING_EXITS)
@database_argument
@space_option
@click.option(
    "--encoder", metavar="NAME", help="Encoder of a new space: a folder, a Hugging Face name, or hashing:DIM."
)
@click.option("--query-model", metavar="NAME", help="Separate encoder for the queries of a new space, as in DPR.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "max", "mean_sqrt_len"]),
    help="How a new space combines token vectors.  [default: as the model says]",
)
@click.option(
    "--pooling-span",
    type=click.Choice(["all", "content"]),
    help="Tokens to combine. 'content' excludes [CLS] and [SEP].  [default: all]",
)
@click.option(
    "--normalise/--no-normalise", default=None, help="Scale vectors to length 1.  [default: as the model says]"
)
@click.option(
    "--metric",
    type=click.Choice(["inner_product", "squared_l2"]),
    help="Distance measure of a new space.  [default: as the model says]",
)
@click.option(
    "--query-prefix", metavar="TEXT", help="Text to add in front of every query.  [default: as the model says]"
)
@click.option(
    "--passage-prefix", metavar="TEXT", help="Text to add in front of every chunk.  [default: as the model says]"
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Longest input in encoder tokens. Longer chunks are truncated and counted.",
)
@click.option(
    "--keep-vectors/--no-keep-vectors",
    default=None,
    help="Store the vectors of a new space, or only index codes.  [default: store vectors]",
)
@click.option(
    "--factory",
    metavar="NAME",
    help="With --no-keep-vectors: FAISS factory string of the index.  [default: chosen by size]",
)
@device_option
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Number format to compute in: auto, float32 or bfloat16.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of tokens per batch.  [default: chosen by device]",
)
@task_options
def command(
    session: Session,
    /,
    database: str,
    space: str | None,
    device: str,
    dtype: str,
    batch_tokens: int | None,
    workers: int | None,
    dry_run: bool,
    **options: Unpack[EmbedOptions],
) -> None:
    """Compute the missing vectors of the live chunks of DB, and of the rows of query sets.

    The options of a new space cannot be changed later.
    """
    db = open_database(session, database, workers)
    result = db.embed(space=space, device=device, dtype=dtype, batch_tokens=batch_tokens, dry_run=dry_run, **options)
    session.output.result(result)
