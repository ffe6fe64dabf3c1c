"""The plan of a database that is not there yet: hours, bytes, memory, files and cost of every stage of its first build.

A pure function of the request and of figures with their origins. `work.py` says what each stage does, by the functions with which
the stages choose; here the work becomes time and money. Time is that of the processors: disks and networks have to carry
`io_bytes_per_s` for each worker meanwhile, else they decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from retrodb.engine.task_memory import MAIN_MIB
from retrodb.errors import MissingStep
from retrodb.maintain.plan.figures import PlanFigures, PlanRate
from retrodb.maintain.plan.gpus import embed_rate, join_rate
from retrodb.maintain.plan.join_choice import choose_join
from retrodb.maintain.plan.prices import PlanPrices
from retrodb.maintain.plan.request import PlanRequest, check_request, encoder_name
from retrodb.maintain.plan.shipped import PLANNING_S, TASK_ORIGIN, TASK_S
from retrodb.maintain.plan.sizes import DatabaseSize
from retrodb.maintain.plan.work import StageWork, stage_works
from retrodb.memory import MIB

_HOUR_S = 3600


@dataclass(frozen=True)
class PlannedRate:
    """A rate that a stage was computed with."""

    name: str
    rate_per_s: float  # of one core, or of one GPU
    unit_of: str  # "core" or "GPU"
    hours: float  # of all cores or GPUs that this part of the stage takes
    origin: str


@dataclass(frozen=True)
class StageForecast:
    """What one stage of a first build takes."""

    stage: str
    cpu_hours: float  # of all cores together
    gpu_hours: float  # of all GPUs together
    wall_hours: float  # with the workers and GPUs of the request
    serial_s: float  # of the wall time: planning, committing, and steps of one task
    read_bytes: int
    written_bytes: int  # also of files that are deleted afterwards
    shuffled_bytes: int  # of both, files that tasks leave for each other
    stored_bytes: int  # that stay
    io_bytes_per_s: int  # that storage has to carry for each worker or GPU, for the wall time to hold
    memory_bytes: int  # of a worker with one process
    fits_memory: bool
    num_tasks: int
    num_files: int  # that stay
    cost: float | None  # None: a price that it needs is not given
    rates: tuple[PlannedRate, ...]


@dataclass(frozen=True)
class PipelinePlan:
    """What a database of so many tokens takes."""

    num_tokens: int
    num_documents: int
    num_chunks: int
    chunk_tokens: int
    num_vectors: int
    text_bytes: int
    encoder: str
    dimension: int
    num_workers: int  # CPU cores, with a process each
    worker_memory_bytes: int  # of each
    gpu: str | None  # type
    num_gpus: int
    store: str
    factory: str
    factory_note: str  # why it is not the one that was asked for; empty where it is
    num_lists: int
    num_shards: int
    shard_chunks: int
    num_parts: int  # of the index, merged
    nprobe: int  # lists that a row of the table reads; 0: compared with every vector
    list_ranges: int  # that the join is split into
    ranges_per_row: float  # F
    stages: tuple[StageForecast, ...]
    stored_by_kind: Mapping[str, int]  # bytes; `export` is next to the database
    total: StageForecast
    storage_cost_per_month: float | None
    averages_origin: str
    probes_origin: str
    ranges_origin: str  # of F


_RANGES_ORIGIN = (
    "shipped: 2026-11, 88,649 vectors by all-MiniLM-L6-v2, measured in 16 and 64 ranges (2026-11-28-routing.md), else simulated; "
    "an estimate for more than 113 lists a row"
)


def plan_pipeline(request: PlanRequest, figures: PlanFigures) -> PipelinePlan:
    """Plan the first build of a database.

    Raises:
        UsageError: for an invalid request.
        ConfigError: for a factory that is not supported.
        MissingStep: no rate of the encoder is known.
    """
    check_request(request)
    if "embed" not in figures.rates and not _gpu_rates(request, "embed"):
        raise MissingStep(
            f"no rate of the encoder '{request.encoder}' is known",
            remedy="Run 'retrodb plan --measure FILE --encoder NAME', and plan with '--rates FILE'.",
        )
    size = DatabaseSize.of(request, figures.averages)
    join = choose_join(request, size, figures.probes_factor)
    works = stage_works(request, size, figures.averages, join)
    stages = tuple(_forecast(request, size, figures, work) for work in works)
    stored = Counter[str]()
    for work in works:
        stored.update(work.stored)
    gigabytes = sum(stored.values()) / 1e9
    monthly = request.prices.storage_gb_month
    return PipelinePlan(
        num_tokens=size.tokens,
        num_documents=size.documents,
        num_chunks=size.chunks,
        chunk_tokens=size.chunk_tokens,
        num_vectors=size.vectors,
        text_bytes=size.text_bytes,
        encoder=request.encoder,
        dimension=size.dimension,
        num_workers=request.workers,
        worker_memory_bytes=request.worker_memory,
        gpu=request.gpu,
        num_gpus=request.gpus,
        store=request.store,
        factory=size.factory,
        factory_note=size.factory_note,
        num_lists=size.num_lists,
        num_shards=size.shards,
        shard_chunks=size.shard_chunks,
        num_parts=len(size.part_rows),
        nprobe=join.nprobe,
        list_ranges=join.num_ranges,
        ranges_per_row=round(join.ranges_per_row, 2),
        stages=stages,
        stored_by_kind=stored,
        total=_total(stages),
        storage_cost_per_month=None if monthly is None else round(gigabytes * monthly, 2),
        averages_origin=figures.averages.origin,
        probes_origin=figures.probes_origin,
        ranges_origin=_RANGES_ORIGIN,
    )


def _gpu_rates(request: PlanRequest, stage: str) -> dict[str, PlanRate]:
    """The rates of a stage's parts that a GPU computes."""
    if request.gpu is None:
        return {}
    if stage == "neighbours":
        return {"scan": join_rate(request.gpu)}
    rate = embed_rate(request.gpu, encoder_name(request.encoder)) if stage == "embed" else None
    return {} if rate is None else {"embed": rate}


def _forecast(request: PlanRequest, size: DatabaseSize, figures: PlanFigures, work: StageWork) -> StageForecast:
    on_gpu = _gpu_rates(request, work.stage)
    rates, seconds = [], {"core": 0.0, "GPU": 0.0}
    for name, amount in work.amounts.items():
        if amount:
            unit_of = "GPU" if name in on_gpu else "core"
            rate = on_gpu.get(name) or figures.rates[name]
            seconds[unit_of] += amount / rate.per_s
            rates.append(PlannedRate(name, rate.per_s, unit_of, amount / rate.per_s / _HOUR_S, rate.origin))
    of_steps = sum(amount / figures.rates[name].per_s for name, amount in work.serial.items())
    serial_s = figures.command_s + PLANNING_S * size.shards + of_steps
    # One worker runs the tasks in the command's own process; more are given them one by one.
    overhead_s = 0.0
    if request.workers > 1:
        overhead_s = TASK_S[request.store] * work.num_tasks
        rates.append(PlannedRate("tasks", 1 / TASK_S[request.store], "core", overhead_s / _HOUR_S, TASK_ORIGIN))
    cpu_s = seconds["core"] - of_steps + overhead_s
    side_by_side = max(1, min(request.workers, work.num_tasks))
    gpu_wall_s = seconds["GPU"] / max(1, min(request.gpus, work.num_tasks))
    wall_s = serial_s + max(cpu_s / side_by_side, gpu_wall_s)  # cores prepare what the GPUs compute
    cpu_hours, gpu_hours = (cpu_s + serial_s) / _HOUR_S, seconds["GPU"] / _HOUR_S
    memory = MAIN_MIB * MIB + work.memory_bytes
    moved = work.read_bytes + work.written_bytes
    machines = min(request.gpus, work.num_tasks) if gpu_hours else side_by_side
    num_files = round(work.files_of_shard * size.shards)
    return StageForecast(
        stage=work.stage,
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        wall_hours=wall_s / _HOUR_S,
        serial_s=serial_s,
        read_bytes=round(work.read_bytes),
        written_bytes=round(work.written_bytes),
        shuffled_bytes=round(work.shuffled_bytes),
        stored_bytes=sum(work.stored.values()),
        io_bytes_per_s=round(moved / wall_s / machines),
        memory_bytes=memory,
        fits_memory=memory <= request.worker_memory,
        num_tasks=work.num_tasks,
        num_files=num_files,
        cost=_cost(request, cpu_hours, gpu_hours, moved, work.num_tasks + num_files),
        rates=tuple(rates),
    )


def _cost(request: PlanRequest, cpu_hours: float, gpu_hours: float, moved: float, objects: float) -> float | None:
    """What a stage costs, of the prices that are given; None where it takes hours without a price."""
    prices: PlanPrices = request.prices
    if prices.cpu_hour is None or (gpu_hours and prices.gpu_hour is None):
        return None
    cost = (
        cpu_hours * prices.cpu_hour + gpu_hours * (prices.gpu_hour or 0.0) + moved / 1e9 * (prices.transfer_gb or 0.0)
    )
    if request.store == "s3":  # a record of each task is an object, too
        cost += objects / 1000 * ((prices.put_1000 or 0.0) + (prices.get_1000 or 0.0))
    return round(cost, 2)


def _total(stages: Sequence[StageForecast]) -> StageForecast:
    """The sums of all stages; of memory and of bytes a second, the most of a stage."""

    def summed(name: str) -> float:
        return sum(cast(float, getattr(stage, name)) for stage in stages)

    costs = [stage.cost for stage in stages]
    return StageForecast(
        stage="total",
        cpu_hours=summed("cpu_hours"),
        gpu_hours=summed("gpu_hours"),
        wall_hours=summed("wall_hours"),
        serial_s=summed("serial_s"),
        read_bytes=round(summed("read_bytes")),
        written_bytes=round(summed("written_bytes")),
        shuffled_bytes=round(summed("shuffled_bytes")),
        stored_bytes=round(summed("stored_bytes")),
        io_bytes_per_s=max(stage.io_bytes_per_s for stage in stages),
        memory_bytes=max(stage.memory_bytes for stage in stages),
        fits_memory=all(stage.fits_memory for stage in stages),
        num_tasks=round(summed("num_tasks")),
        num_files=round(summed("num_files")),
        cost=None if None in costs else round(sum(cost for cost in costs if cost is not None), 2),
        rates=(),
    )
