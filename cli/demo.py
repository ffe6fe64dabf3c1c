"""`retrodb demo`"""

from __future__ import annotations

import click

from retrodb.config import InitParams

from .options import WRITING_EXITS, Command, Session, measure_options
from .render import demo_result, demo_stage


@click.command(cls=Command, example="retrodb demo demo.retrodb", exits=WRITING_EXITS)
@click.argument("folder", metavar="DIR")
@click.option(
    "--encoder",
    default=InitParams.encoder,
    show_default=True,
    metavar="NAME",
    help="Encoder of the default space: a folder, a Hugging Face name, or hashing:DIM.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N documents, and at most N test documents."
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Number of training steps of the validation.",
)
@measure_options
def command(session: Session, folder: str, encoder: str, limit: int | None, steps: int, workers: int | None) -> None:
    """Build a database in DIR from the documentation of Python's standard library, and run every stage once.

    To continue an interrupted demo, run the same command again. The input and the export of the demo are in DIR/demo.
    """
    from retrodb.database import demo

    result = demo(
        folder,
        encoder=encoder,
        limit=limit,
        steps=steps,
        workers=workers,
        memory_bytes=session.memory_bytes,
        progress=session.shows_progress,
        report=lambda stage: session.output.result(stage, demo_stage),
    )
    session.output.result(result, demo_result)
