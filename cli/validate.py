"""`retrodb validate`"""

from __future__ import annotations

from typing import Any

import click

from retrodb.config import ValidateParams

from .options import (
    READING_EXITS,
    Command,
    Session,
    database_argument,
    device_option,
    json_option,
    open_database,
    pass_session,
    progress_option,
)
from .render_retro import validation


@click.command(
    cls=Command, example="retrodb validate my.retrodb --minutes 10 --report report.html", exits=READING_EXITS
)
@database_argument
@click.option("--table", metavar="NAME", help="Neighbour table to train with.  [default: self]")
@click.option("--heldout", metavar="NAME", help="Table of held-out documents.  [default: the first of a query set]")
@click.option("--size", default=ValidateParams.size, show_default=True, metavar="NAME", help="Of the model.")
@click.option(
    "--minutes",
    type=float,
    default=ValidateParams.minutes,
    show_default=True,
    metavar="N",
    help="To train both models.",
)
@click.option("--steps", type=int, metavar="N", help="Instead of --minutes: of each model.")
@click.option("--report", metavar="FILE", help="Write an HTML page with curves and examples.")
@click.option(
    "--batch-chunks", type=int, default=ValidateParams.batch_chunks, show_default=True, metavar="N", help="Of a step."
)
@click.option(
    "--max-train-chunks",
    type=int,
    default=ValidateParams.max_train_chunks,
    show_default=True,
    metavar="N",
    help="About.",
)
@click.option(
    "--max-heldout-chunks",
    type=int,
    default=ValidateParams.max_heldout_chunks,
    show_default=True,
    metavar="N",
    help="About.",
)
@click.option(
    "--seed", type=int, default=ValidateParams.seed, show_default=True, metavar="N", help="Of samples and weights."
)
@device_option
@progress_option
@json_option
@pass_session
def command(session: Session, /, database: str, **options: Any) -> None:
    """Train a small RETRO model on DB with its neighbours and one without, and compare them on held-out documents."""
    session.output.result(open_database(session, database).validate(**options), validation)
