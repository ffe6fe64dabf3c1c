"""`retrodb validate`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

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
from .render_retro import validate_result

if TYPE_CHECKING:
    from retrodb.options import ValidateOptions


@click.command(
    cls=Command, example="retrodb validate my.retrodb --minutes 10 --report report.html", exits=READING_EXITS
)
@database_argument
@click.option("--table", metavar="NAME", help="Neighbour table to train on.  [default: self]")
@click.option(
    "--heldout",
    metavar="NAME",
    help="Neighbour table of held-out documents.  [default: the first table of another query set]",
)
@click.option(
    "--size",
    default=ValidateParams.size,
    show_default=True,
    metavar="NAME",
    help="Size of the model: tiny, 2m, 20m or 170m.",
)
@click.option(
    "--minutes",
    type=float,
    default=ValidateParams.minutes,
    show_default=True,
    metavar="N",
    help="Training time of both models together, in minutes.",
)
@click.option("--steps", type=int, metavar="N", help="Number of training steps of each model. Replaces --minutes.")
@click.option("--report", metavar="FILE", help="Write an HTML page with curves and examples. Needs the extra 'plots'.")
@click.option(
    "--batch-chunks",
    type=int,
    default=ValidateParams.batch_chunks,
    show_default=True,
    metavar="N",
    help="Number of chunks per step.",
)
@click.option(
    "--max-train-chunks",
    type=int,
    default=ValidateParams.max_train_chunks,
    show_default=True,
    metavar="N",
    help="Approximate number of chunks to train on.",
)
@click.option(
    "--max-heldout-chunks",
    type=int,
    default=ValidateParams.max_heldout_chunks,
    show_default=True,
    metavar="N",
    help="Approximate number of held-out chunks to evaluate on.",
)
@click.option(
    "--seed",
    type=int,
    default=ValidateParams.seed,
    show_default=True,
    metavar="N",
    help="Random seed of samples and weights.",
)
@device_option
@progress_option
@json_option
@pass_session
def command(
    session: Session,
    /,
    database: str,
    table: str | None,
    heldout: str | None,
    report: str | None,
    device: str,
    **options: Unpack[ValidateOptions],
) -> None:
    """Train a small RETRO model on DB with neighbours and one without, and compare them on held-out documents."""
    db = open_database(session, database)
    result = db.validate(table=table, heldout=heldout, report=report, device=device, **options)
    session.output.result(result, validate_result)
