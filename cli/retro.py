"""`retrodb retro train|fit|eval|generate`"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from retrodb import errors
from retrodb.config import RetroTrainParams

from .options import (
    READING_EXITS,
    Command,
    Session,
    device_option,
    json_option,
    open_database,
    pass_session,
    progress_option,
    space_option,
)
from .render_retro import generated, retro_eval

_COUNT, _ABOVE_0 = click.IntRange(min=1), click.FloatRange(min=0, min_open=True)

_data_option = click.option("--data", required=True, metavar="DIR", help="An export: retrodb export DB --to arrays.")
_checkpoint_option = click.option("--checkpoint", required=True, metavar="DIR", help="Of retro train or retro fit.")
_base_option = click.option("--base", metavar="DIR", help="The base of the checkpoint, when it is a RETROfit.")


@click.group()
def command() -> None:
    """Train, evaluate and use RETRO models on a neighbour table."""


_TRAINING_OPTIONS = (
    _data_option,
    click.option("--out", required=True, metavar="DIR", help="The checkpoint, and its state while it is trained."),
    click.option(
        "--steps",
        type=_COUNT,
        default=RetroTrainParams.steps,
        show_default=True,
        metavar="N",
        help="Of the optimiser.",
    ),
    click.option("--minutes", type=_ABOVE_0, metavar="N", help="Instead of --steps: how long."),
    click.option(
        "--batch-chunks",
        type=_COUNT,
        default=RetroTrainParams.batch_chunks,
        show_default=True,
        metavar="N",
        help="Of a step.",
    ),
    click.option("--k", type=_COUNT, metavar="N", help="Neighbours read of a chunk.  [default: all of the table's]"),
    click.option("--without", is_flag=True, help="Train without any neighbour: the baseline."),
    click.option("--learning-rate", type=_ABOVE_0, metavar="X", help="At the peak.  [default: the size's own]"),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of weights and order."),
    click.option(
        "--save-every",
        type=_COUNT,
        default=RetroTrainParams.save_every,
        show_default=True,
        metavar="N",
        help="Steps between two states to continue from.",
    ),
    device_option,
    progress_option,
    json_option,
    pass_session,
)


def _training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_TRAINING_OPTIONS):
        function = option(function)
    return function


@command.command(
    cls=Command,
    example="retrodb retro train --data my.arrays --out my.model --size 20m --steps 5000",
    exits=(errors.EXIT_DAMAGE, errors.EXIT_NO_SPACE),
)
@click.option("--size", default=RetroTrainParams.size, show_default=True, metavar="NAME", help="tiny, 2m, 20m or 170m.")
@_training_options
def train(session: Session, /, **options: Any) -> None:
    """Train a RETRO model on an export. Killed, the same command continues."""
    from retrodb.database import retro_train

    session.output.result(retro_train(progress=session.shows_progress, **options))


@command.command(
    cls=Command,
    example="retrodb retro fit --base models/gpt2 --data my.arrays --out my.model",
    exits=(errors.EXIT_DAMAGE, errors.EXIT_NO_SPACE),
)
@click.option("--base", required=True, metavar="DIR", help="A Hugging Face causal language model.")
@_training_options
def fit(session: Session, /, **options: Any) -> None:
    """RETROfit a language model: it stays frozen, and learns to retrieve. Killed, the same command continues."""
    from retrodb.database import retro_fit

    session.output.result(retro_fit(progress=session.shows_progress, **options))


@command.command(
    name="eval",
    cls=Command,
    example="retrodb retro eval --checkpoint my.model --db my.retrodb --table heldout",
    exits=READING_EXITS,
)
@_checkpoint_option
@_base_option
@click.option("--data", metavar="DIR", help="An export: retrodb export DB --to arrays --table heldout.")
@click.option("--db", metavar="DB", help="Instead of an export: a database.")
@click.option("--table", metavar="NAME", help="Of the database.  [default: that of its own chunks]")
@click.option(
    "--max-chunks",
    type=_COUNT,
    default=2_000,
    show_default=True,
    metavar="N",
    help="Of the table, about.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the sample and the shuffle.")
@device_option
@json_option
@pass_session
def evaluate(session: Session, /, db: str | None, data: str | None, table: str | None, **options: Any) -> None:
    """Bits per byte of a model, with the neighbours, with those of other chunks, and without any."""
    from retrodb.database import retro_eval as eval_on_export

    if db is not None and data is None:
        result = open_database(session, db).retro_eval(table=table, **options)
    elif data is not None and db is None:
        result = eval_on_export(data=data, **options)
    else:
        raise errors.UsageError("an export or a database is needed", remedy="Give either --data DIR or --db DB.")
    session.output.result(result, retro_eval)


@command.command(
    cls=Command,
    example='retrodb retro generate --checkpoint my.model --db my.retrodb "The first emperor of Rome"',
    exits=READING_EXITS,
)
@click.argument("prompt")
@_checkpoint_option
@_base_option
@click.option("--db", required=True, metavar="DB", help="The database to retrieve from; any that fits the model.")
@click.option("--max-tokens", type=_COUNT, default=128, show_default=True, metavar="N", help="To write.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.8,
    show_default=True,
    metavar="X",
    help="0 takes the likeliest token.",
)
@click.option(
    "--top-k",
    type=_COUNT,
    default=50,
    show_default=True,
    metavar="N",
    help="Of so many tokens one is drawn.",
)
@click.option("--without", is_flag=True, help="Write without retrieving.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the draws.")
@space_option
@device_option
@json_option
@pass_session
def generate(session: Session, /, db: str, **options: Any) -> None:
    """Continue PROMPT, retrieving from a database after every finished chunk, and show what was retrieved."""
    result = open_database(session, db).retro_generate(**options)
    session.output.result(result, generated)
