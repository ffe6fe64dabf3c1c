"""`retrodb bench`"""

from __future__ import annotations

from typing import Any

import click

from .options import (
    READING_EXITS,
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    device_option,
    json_option,
    measures,
    open_database,
    pass_session,
    progress_option,
    share,
    space_option,
)
from .render_bench import recall_report


@click.group()
def command() -> None:
    """Measure recall, latency and the stages' rates on this machine."""


@command.command(
    cls=Command,
    example="retrodb bench recall my.retrodb --target-recall 0.95 --report recall.html",
    exits=WRITING_EXITS,
)
@database_argument
@click.option(
    "--queries",
    metavar="NAME|FILE",
    help="Query set, or file of texts or vectors (.npy).  [default: held-out documents, or own ones, hidden meanwhile]",
)
@click.option("--k", type=int, default=10, show_default=True, metavar="N", help="Neighbours that are looked for.")
@space_option
@click.option(
    "--target-recall", type=share, metavar="SHARE", help="Store the fewest lists that reach it, for later searches."
)
@click.option("--report", type=click.Path(dir_okay=False), metavar="FILE", help="Write .json, .html or .png too.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the sample of queries.")
@measures
def recall(session: Session, /, database: str, workers: int | None, **options: Any) -> None:
    """Measure how much of the true neighbours search in DB finds, and what that costs."""
    session.output.result(open_database(session, database, workers).bench_recall(**options), recall_report)


@command.command(cls=Command, example="retrodb bench throughput my.retrodb", exits=READING_EXITS)
@database_argument
@click.option(
    "--folder", type=click.Path(file_okay=False, exists=True), metavar="DIR", help="Where the sample's database lies."
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Of the sample, about.  [default: 4,000]")
@device_option
@progress_option
@json_option
@pass_session
def throughput(session: Session, /, database: str, **options: Any) -> None:
    """Measure every stage's rate on one core, with DB's tokenizer and encoder, and keep the rates for planning."""
    session.output.result(open_database(session, database).bench_throughput(**options))
