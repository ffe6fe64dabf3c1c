"""The plan of a database that is not there yet, and the measurement of the rates that it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.config import InitParams, NeighboursParams
from retrodb.engine.progress import make_progress
from retrodb.facade.base import make_context
from retrodb.facade.guard import guarded
from retrodb.format.entries import SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    from retrodb.maintain.plan.command import PipelinePlan
    from retrodb.maintain.plan.figures import RatesFile
    from retrodb.view.view import View


@guarded
def plan_database(
    path: str | Path | Storage | None = None,
    *,
    tokens: int,
    encoder: str | None = None,
    dimension: int | None = None,
    chunk_tokens: int | None = None,
    workers: int = 1,
    worker_memory: int = 4 << 30,
    gpu: str | None = None,
    gpus: int = 0,
    k: int = NeighboursParams.k,
    spare_neighbours: int = NeighboursParams.spare_neighbours,
    route_ranges: int = NeighboursParams.route_ranges,
    search_memory_bytes: int = 8 << 30,
    factory: str = "auto",
    store: str | None = None,
    prices: str | None = None,
    rates: str | Path | None = None,
) -> PipelinePlan:
    """What the first build of a database of so many tokens takes: hours, bytes, memory, files and cost of every stage.

    Args:
        path: a database whose averages, encoder and length of chunks count. None takes shipped averages.
        tokens: of the language model.
        encoder: "hashing:DIM" or the name of a model. None takes the database's, that of the rates, or the default.
        dimension: of its vectors, where its name does not say.
        workers: CPU cores, with a process each.
        worker_memory: bytes of each.
        gpu: type of the GPUs, such as "h100".
        k, spare_neighbours, route_ranges: of the table, as in `Database.neighbours`.
        search_memory_bytes, factory: of the index, as in `Database.index`.
        store: "local" or "s3": where the files are. None is where the database is, or local.
        prices: such as "gpu-hour=2.5,cpu-hour=0.04".
        rates: a file of `measure_plan_rates`. None takes the shipped rates.

    Raises:
        UsageError: a value is invalid.
        MissingStep: no rate of the encoder is known, or the database has no documents.
    """
    from retrodb.maintain.plan.averages import averages_of
    from retrodb.maintain.plan.command import plan_pipeline
    from retrodb.maintain.plan.figures import measured_figures, read_rates_file
    from retrodb.maintain.plan.prices import PlanPrices, parse_prices
    from retrodb.maintain.plan.request import PlanRequest
    from retrodb.maintain.plan.shipped import shipped_figures

    view = None if path is None else _view(path)
    stored = None if rates is None else read_rates_file(Path(rates))
    if encoder is None and dimension is None and view is not None:
        space = view.snapshot.entry(SpaceEntry, view.snapshot.default_space)
        dimension = None if space is None else space.dimension
    encoder = encoder or _encoder_of(view) or (stored.encoder if stored else InitParams.encoder)
    figures = shipped_figures(encoder)
    if stored is not None:
        figures = measured_figures(figures, stored, encoder)
        dimension = dimension or (stored.dimension if stored.encoder == encoder else None)
    if view is not None:
        figures = replace(figures, averages=averages_of(view, f"the averages of {view.storage.url}"))
        chunk_tokens = chunk_tokens or view.settings.chunk_tokens
    if store is None:
        store = "s3" if view is not None and "://" in view.storage.url else "local"
    request = PlanRequest(
        tokens=tokens,
        encoder=encoder,
        dimension=dimension,
        chunk_tokens=InitParams.chunk_tokens if chunk_tokens is None else chunk_tokens,
        workers=workers,
        worker_memory=worker_memory,
        gpu=None if gpu is None else gpu.lower(),
        gpus=gpus,
        k=k,
        spare_neighbours=spare_neighbours,
        route_ranges=route_ranges,
        search_memory_bytes=search_memory_bytes,
        factory=factory,
        store=store,
        prices=PlanPrices() if prices is None else parse_prices(prices),
    )
    return plan_pipeline(request, figures)


@guarded
def measure_plan_rates(
    out: str | Path,
    path: str | Path | Storage | None = None,
    *,
    sample: Sequence[str | Path] = (),
    encoder: str | None = None,
    dimension: int | None = None,
    tokenizer: str | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> RatesFile:
    """Measure the rates of every stage on one core of this machine, in about a minute, and write them into a file.

    Args:
        out: the file. `plan_database` reads it.
        path: a database whose tokenizer and encoder are used.
        sample: input files whose first documents are built. Without any, the standard library's documentation.
        encoder: "hashing:DIM" or the name of a model. None takes the database's, or the default.
        dimension: of its vectors, where its name does not say.
        tokenizer: a file, a folder or a Hugging Face name. None takes the database's, or trains one on the sample.
        folder: for temporary databases. None takes the system's.

    Raises:
        UsageError: the sample is too small, nothing is known of the encoder, or the file cannot be written.
        InputError: the sample has no document.
    """
    from retrodb.maintain.plan.figures import check_writable, write_rates
    from retrodb.maintain.plan.measure import measure_stages

    check_writable(Path(out))
    view = None if path is None else _view(path)
    if view is not None and tokenizer is None:
        tokenizer = str(view.storage.local(path_of("tokenizer")))
    measured = measure_stages(
        make_progress(progress),
        [str(file) for file in sample],
        encoder=encoder or _encoder_of(view) or InitParams.encoder,
        dimension=dimension,
        tokenizer=tokenizer,
        folder=None if folder is None else Path(folder),
    )
    write_rates(Path(out), measured)
    return measured


def _view(path: str | Path | Storage) -> View:
    return make_context(path).view()


def _encoder_of(view: View | None) -> str | None:
    params = None if view is None else view.snapshot.embed_params(view.snapshot.default_space)
    return None if params is None else params.encoder
