"""`retrodb retro train|fit|eval|generate`"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Unpack

import click

from retrodb import errors
from retrodb.config import RetroTrainParams

from .options import (
    DATABASE_VARIABLE,
    READING_EXITS,
    Command,
    Session,
    combine,
    device_option,
    json_option,
    open_database,
    pass_session,
    progress_option,
    space_option,
)
from .render_retro import retro_eval_result, retro_generate_result

if TYPE_CHECKING:
    from retrodb.options import RetroTrainOptions

_COUNT, _ABOVE_0 = click.IntRange(min=1), click.FloatRange(min=0, min_open=True)

_data_option = click.option(
    "--data", required=True, metavar="DIR", help="Export to train on, written by 'retrodb export DB DIR --to arrays'."
)
_checkpoint_option = click.option(
    "--checkpoint", required=True, metavar="DIR", help="Model, written by 'retrodb retro train' or 'retrodb retro fit'."
)
_base_option = click.option("--base", metavar="DIR", help="Base model of the checkpoint, for a RETROfit model.")


@click.group()
def command() -> None:
    """Train, evaluate and use RETRO models on a neighbour table."""


_training_options = combine(
    _data_option,
    click.option("--out", required=True, metavar="DIR", help="Folder for the checkpoint."),
    click.option(
        "--steps",
        type=_COUNT,
        default=RetroTrainParams.steps,
        show_default=True,
        metavar="N",
        help="Number of optimiser steps.",
    ),
    click.option("--minutes", type=_ABOVE_0, metavar="N", help="Training time in minutes. Replaces --steps."),
    click.option(
        "--batch-chunks",
        type=_COUNT,
        default=RetroTrainParams.batch_chunks,
        show_default=True,
        metavar="N",
        help="Number of chunks per step.",
    ),
    click.option("--k", type=_COUNT, metavar="N", help="Number of neighbours per chunk.  [default: all in the table]"),
    click.option("--without", is_flag=True, help="Train without neighbours (the baseline)."),
    click.option(
        "--learning-rate", type=_ABOVE_0, metavar="X", help="Peak learning rate.  [default: chosen by model size]"
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed of weights and data order."
    ),
    click.option(
        "--save-every",
        type=_COUNT,
        default=RetroTrainParams.save_every,
        show_default=True,
        metavar="N",
        help="Number of steps between two checkpoints.",
    ),
    device_option,
    progress_option,
    json_option,
    pass_session,
)


@command.command(
    cls=Command,
    example="retrodb retro train --data my.arrays --out my.model --size 20m --steps 5000",
    exits=(errors.EXIT_DAMAGE, errors.EXIT_NO_SPACE),
)
@click.option(
    "--size",
    default=RetroTrainParams.size,
    show_default=True,
    metavar="NAME",
    help="Size of the model: tiny, 2m, 20m or 170m.",
)
@_training_options
def train(session: Session, /, data: str, out: str, **options: Unpack[RetroTrainOptions]) -> None:
    """Train a RETRO model on an export. To continue an interrupted training, run the same command again."""
    from retrodb.database import retro_train

    session.output.result(retro_train(data=data, out=out, progress=session.shows_progress, **options))


@command.command(
    cls=Command,
    example="retrodb retro fit --base models/gpt2 --data my.arrays --out my.model",
    exits=(errors.EXIT_DAMAGE, errors.EXIT_NO_SPACE),
)
@click.option("--base", required=True, metavar="DIR", help="Folder of a Hugging Face causal language model.")
@_training_options
def fit(session: Session, /, base: str, data: str, out: str, **options: Unpack[RetroTrainOptions]) -> None:
    """Add retrieval to a language model (RETROfit). The weights of the base model do not change.

    To continue an interrupted training, run the same command again.
    """
    from retrodb.database import retro_fit

    session.output.result(retro_fit(base=base, data=data, out=out, progress=session.shows_progress, **options))


@command.command(
    name="eval",
    cls=Command,
    example="retrodb retro eval --checkpoint my.model --db my.retrodb --table heldout",
    exits=READING_EXITS,
)
@_checkpoint_option
@_base_option
@click.option(
    "--data",
    metavar="DIR",
    help="Export to evaluate on, written by 'retrodb export DB DIR --to arrays --table heldout'.",
)
@click.option("--db", metavar="DB", help="Database to evaluate on, instead of --data.  [default: RETRODB_DB]")
@click.option("--table", metavar="NAME", help="Neighbour table of --db.  [default: the table of its own chunks]")
@click.option(
    "--max-chunks",
    type=_COUNT,
    default=2_000,
    show_default=True,
    metavar="N",
    help="Approximate number of chunks to evaluate on.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed of the sample and the shuffle."
)
@device_option
@json_option
@pass_session
def evaluate(
    session: Session,
    checkpoint: str,
    base: str | None,
    data: str | None,
    db: str | None,
    table: str | None,
    max_chunks: int,
    seed: int,
    device: str,
) -> None:
    """Compute the bits per byte of a model with its neighbours, with shuffled neighbours, and without neighbours."""
    from retrodb.database import retro_eval as eval_on_export

    if db is None and data is None:
        db = os.environ.get(DATABASE_VARIABLE)
    if db is not None and data is None:
        result = open_database(session, db).retro_eval(
            checkpoint=checkpoint, table=table, base=base, max_chunks=max_chunks, seed=seed, device=device
        )
    elif data is not None and db is None:
        result = eval_on_export(
            checkpoint=checkpoint, data=data, base=base, max_chunks=max_chunks, seed=seed, device=device
        )
    else:
        raise errors.UsageError("an export or a database is needed", remedy="Give either --data DIR or --db DB.")
    session.output.result(result, retro_eval_result)


@command.command(
    cls=Command,
    example='retrodb retro generate --checkpoint my.model --db my.retrodb "The first emperor of Rome"',
    exits=READING_EXITS,
)
@click.argument("prompt")
@_checkpoint_option
@_base_option
@click.option(
    "--db",
    required=True,
    envvar=DATABASE_VARIABLE,
    metavar="DB",
    help="Database to retrieve from. Its tokenizer and encoder must be the model's.",
)
@click.option(
    "--max-tokens", type=_COUNT, default=128, show_default=True, metavar="N", help="Largest number of tokens to write."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.8,
    show_default=True,
    metavar="X",
    help="Sampling temperature. 0 always takes the most likely token.",
)
@click.option(
    "--top-k",
    type=_COUNT,
    default=50,
    show_default=True,
    metavar="N",
    help="Sample from the N most likely tokens.",
)
@click.option("--without", is_flag=True, help="Write without retrieval.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed of the sampling.")
@space_option
@device_option
@json_option
@pass_session
def generate(
    session: Session,
    prompt: str,
    checkpoint: str,
    base: str | None,
    db: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    without: bool,
    seed: int,
    space: str | None,
    device: str,
) -> None:
    """Continue PROMPT with a model that retrieves from a database after every chunk. Prints the retrieved chunks too."""
    result = open_database(session, db).retro_generate(
        prompt,
        checkpoint=checkpoint,
        base=base,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        without=without,
        seed=seed,
        space=space,
        device=device,
    )
    session.output.result(result, retro_generate_result)
