"""`retrodb bench`"""

from __future__ import annotations

import click

from .option_types import fraction
from .options import (
    READING_EXITS,
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    device_option,
    json_option,
    measure_options,
    open_database,
    pass_session,
    progress_option,
    space_option,
)
from .render_bench import recall_report


@click.group()
def command() -> None:
    """Measure recall, latency and throughput on this machine."""


@command.command(
    cls=Command,
    example="retrodb bench recall my.retrodb --target-recall 0.95 --report recall.html",
    exits=WRITING_EXITS,
)
@database_argument
@click.option(
    "--queries",
    metavar="NAME|FILE",
    help="Query set, or file with texts or vectors (.npy).  [default: held-out documents, or else a sample of DB]",
)
@click.option("--k", type=int, default=10, show_default=True, metavar="N", help="Number of neighbours to find.")
@space_option
@click.option(
    "--target-recall",
    type=fraction,
    metavar="FRACTION",
    help="Store the smallest number of lists that reaches this recall. Later searches use it.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also write a report to this .json, .html or .png file. HTML and PNG need the extra 'plots'.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed for the sample of queries."
)
@measure_options
def recall(
    session: Session,
    database: str,
    queries: str | None,
    k: int,
    space: str | None,
    target_recall: float | None,
    report: str | None,
    seed: int,
    workers: int | None,
) -> None:
    """Measure the recall of search in DB, and its speed.

    Queries that are part of DB are hidden from the search, so that no query can find itself.
    """
    db = open_database(session, database, workers)
    result = db.bench_recall(queries=queries, k=k, space=space, target_recall=target_recall, report=report, seed=seed)
    session.output.result(result, recall_report)


@command.command(cls=Command, example="retrodb bench throughput my.retrodb", exits=READING_EXITS)
@database_argument
@click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True),
    metavar="DIR",
    help="Folder for the temporary database.  [default: the system's temporary folder]",
)
@click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="Approximate size of the sample.  [default: 4,000]"
)
@device_option
@progress_option
@json_option
@pass_session
def throughput(session: Session, database: str, folder: str | None, chunks: int | None, device: str) -> None:
    """Measure the speed of every stage on one core, with the tokenizer and encoder of DB.

    The results are stored on this machine. 'retrodb update --dry-run' estimates times from them.
    """
    session.output.result(
        open_database(session, database).bench_throughput(folder=folder, chunks=chunks, device=device)
    )
