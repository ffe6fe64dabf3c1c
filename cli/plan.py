"""`retrodb plan`"""

from __future__ import annotations

import click

from retrodb import errors

from .option_types import count, size
from .options import READING_EXITS, Command, Session, json_option, pass_session, progress_option
from .render_plan import measured_rates, pipeline_plan


@click.command(
    cls=Command,
    example="""
    retrodb plan --tokens 1e12 --gpu h100 --gpus 64 --workers 512 --price gpu-hour=2.5,cpu-hour=0.04
    retrodb plan --measure rates.json --sample articles.jsonl.zst
    retrodb plan --tokens 300B --rates rates.json --workers 128 --worker-memory 16GiB
    """,
    exits=(*READING_EXITS, errors.EXIT_NO_SPACE),
)
@click.argument("database", metavar="[DB]", required=False)
@click.option(
    "--tokens", type=count, metavar="N", help="Tokens of the language model, such as 1e12, 1T, 300B or 1,000,000."
)
@click.option(
    "--encoder",
    metavar="NAME",
    help="Encoder of the chunks: hashing:DIM, or the name of a model.  [default: DB's, or that of --rates, or "
    "all-MiniLM-L6-v2]",
)
@click.option(
    "--dimension", type=click.IntRange(min=1), metavar="N", help="Dimensions of its vectors, if its name is not known."
)
@click.option(
    "--chunk-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of a chunk.  [default: DB's, or 64]"
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="CPU cores that work at the same time, with one process each.",
)
@click.option(
    "--worker-memory",
    type=size,
    default="4GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory of each of these processes. The plan says where a task needs more.",
)
@click.option("--gpu", metavar="TYPE", help="Type of the GPUs: h100, h200, a100, l40s or l4.")
@click.option(
    "--gpus", type=click.IntRange(min=0), default=0, metavar="N", help="Number of GPUs, which embed and join."
)
@click.option(
    "--k", type=click.IntRange(min=1), default=2, show_default=True, metavar="N", help="Neighbours of a chunk."
)
@click.option(
    "--spare-neighbours",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    metavar="N",
    help="Further neighbours of a chunk, which replace those that are deleted later.",
)
@click.option(
    "--route-ranges",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Ranges of lists of which each row of the table reads few, as in 'retrodb neighbours'.  0 for no routing.",
)
@click.option(
    "--search-memory",
    type=size,
    default="8GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory of the machine that will search. It chooses the type of the index.",
)
@click.option(
    "--factory", default="auto", show_default=True, metavar="TEXT", help="FAISS factory string. 'auto' chooses by size."
)
@click.option(
    "--store",
    type=click.Choice(["local", "s3"]),
    help="Where the files are: on disks, or in an object store.  [default: where DB is, or local]",
)
@click.option(
    "--price",
    metavar="LIST",
    help="Prices as NAME=NUMBER, separated by commas: gpu-hour and cpu-hour (of one core), storage-gb-month and transfer-gb (of "
    "10^9 bytes), put-1000 and get-1000 (of 1,000 objects, with --store s3). No price is assumed.",
)
@click.option(
    "--rates",
    metavar="FILE",
    help="Rates of this machine, from --measure.  [default: shipped rates, whose origin is shown]",
)
@click.option(
    "--measure",
    metavar="FILE",
    help="Measure the rates of one core in about a minute, and write them to this file first.",
)
@click.option(
    "--sample",
    multiple=True,
    metavar="FILE",
    help="Input whose first documents are measured. Repeat the option for several.  [default: Python's documentation]",
)
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="Tokenizer for --measure: a file, a folder or a Hugging Face name.  [default: DB's, or trained on the sample]",
)
@progress_option
@json_option
@pass_session
def command(
    session: Session,
    database: str | None,
    tokens: int | None,
    encoder: str | None,
    dimension: int | None,
    chunk_tokens: int | None,
    workers: int,
    worker_memory: int,
    gpu: str | None,
    gpus: int,
    k: int,
    spare_neighbours: int,
    route_ranges: int,
    search_memory: int,
    factory: str,
    store: str | None,
    price: str | None,
    rates: str | None,
    measure: str | None,
    sample: tuple[str, ...],
    tokenizer: str | None,
) -> None:
    """Predict what the first build of a database of N tokens takes: time, bytes, memory, files and cost of every stage.

    With DB, averages of its documents count, and its encoder. Each rate is shown with its origin: measured on this machine, or
    shipped with the day and machine of its measurement. An estimate says that it is one.
    """
    from retrodb.database import measure_plan_rates, plan_database

    if tokens is None and measure is None:
        raise click.UsageError("Give --tokens N, or --measure FILE.")
    if measure is None and (sample or tokenizer):
        raise click.UsageError("--sample and --tokenizer need --measure FILE.")
    if measure is not None and rates is not None:
        raise click.UsageError("Give either --measure or --rates.")
    if measure is not None:
        measured = measure_plan_rates(
            measure,
            database,
            sample=sample,
            encoder=encoder,
            dimension=dimension,
            tokenizer=tokenizer,
            progress=session.shows_progress,
        )
        rates = measure
        if tokens is None:
            session.output.result(measured, measured_rates)
            return
        session.output.note(f"Rates were written to {measure}.")
    assert tokens is not None
    plan = plan_database(
        database,
        tokens=tokens,
        encoder=encoder,
        dimension=dimension,
        chunk_tokens=chunk_tokens,
        workers=workers,
        worker_memory=worker_memory,
        gpu=gpu,
        gpus=gpus,
        k=k,
        spare_neighbours=spare_neighbours,
        route_ranges=route_ranges,
        search_memory_bytes=search_memory,
        factory=factory,
        store=store,
        prices=price,
        rates=rates,
    )
    session.output.result(plan, pipeline_plan)
