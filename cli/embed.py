"""`retrodb embed`"""

from __future__ import annotations

from typing import Any

import click

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    device_option,
    open_database,
    runs_tasks,
    space_option,
)


@click.command(cls=Command, example="retrodb embed my.retrodb --device cuda", exits=WRITING_EXITS)
@database_argument
@space_option
@click.option("--encoder", metavar="NAME", help="For a new space: a folder, a hub name, or hashing:DIM.")
@click.option("--query-model", metavar="NAME", help="For a new space: another model for queries, as in DPR.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "max", "mean_sqrt_len"]),
    help="For a new space.  [default: the model's own]",
)
@click.option(
    "--pooling-span", type=click.Choice(["all", "content"]), help="content leaves [CLS] and [SEP] out.  [default: all]"
)
@click.option("--normalise/--no-normalise", default=None, help="Unit length.  [default: the model's own]")
@click.option("--metric", type=click.Choice(["inner_product", "squared_l2"]), help="[default: the model's own]")
@click.option("--query-prefix", metavar="TEXT", help="Put before a query's text.  [default: the model's own]")
@click.option("--passage-prefix", metavar="TEXT", help="Put before a chunk's text.  [default: the model's own]")
@click.option(
    "--max-length", type=click.IntRange(min=1), metavar="N", help="Encoder tokens; longer chunks are cut and counted."
)
@click.option(
    "--keep-vectors/--no-keep-vectors",
    default=None,
    help="For a new space: without them, only index codes are stored.  [default: keep]",
)
@click.option("--factory", metavar="NAME", help="With --no-keep-vectors: of the index.  [default: by size]")
@device_option
@click.option(
    "--dtype", default="auto", show_default=True, metavar="NAME", help="To compute in: auto, float32 or bfloat16."
)
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of a batch.  [default: by the device]"
)
@runs_tasks
def command(session: Session, /, database: str, workers: int | None, **options: Any) -> None:
    """Give every live chunk of DB without a vector its vector, and the rows of the query sets theirs."""
    session.output.result(open_database(session, database, workers).embed(**options))
