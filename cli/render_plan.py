"""Plans as text for people."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from .output import format_count, format_size, render_table, terminal_width

if TYPE_CHECKING:
    from retrodb.maintain.plan.command import PipelinePlan, PlannedRate, StageForecast
    from retrodb.maintain.plan.figures import RatesFile


def pipeline_plan(plan: PipelinePlan) -> str:
    """What is planned, the stages, the rates with their origins, and what to know about them."""
    stages, width = [*plan.stages, plan.total], terminal_width()
    rates = [(stage, rate) for stage in plan.stages for rate in stage.rates]
    origins = list(dict.fromkeys(rate.origin for _, rate in rates))
    numbered = [f"[{number}] {origin}" for number, origin in enumerate(origins, 1)]
    blocks = [
        _wrapped(_head(plan), width),
        render_table([_times(stage, has_gpus=plan.gpu is not None) for stage in stages], width),
        render_table([_bytes(stage) for stage in stages], width),
        render_table([_rate(stage, rate, origins.index(rate.origin) + 1) for stage, rate in rates], width),
        _wrapped([*numbered, *_origins(plan)], width),
        _wrapped(_notes(plan), width),
    ]
    return "\n\n".join(blocks)


def _wrapped(lines: list[str], width: int) -> str:
    """The lines, cut where they are longer than the terminal is wide. Names of files stay whole."""
    folded = (
        textwrap.fill(line, max(20, width), subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
        for line in lines
    )
    return "\n".join(folded)


def measured_rates(measured: RatesFile) -> str:
    """The rates of one core, and what they were measured on."""
    rates = [{"rate": name, "per second and core": _number(rate)} for name, rate in measured.rates.items()]
    head = f"{measured.machine}, {measured.measured_at}: {measured.sample}, {measured.encoder}"
    return f"{_wrapped([head], terminal_width())}\n\n{render_table(rates)}"


def _counted(count: int, thing: str) -> str:
    return f"{format_count(count)} {thing}{'' if count == 1 else 's'}"


def _head(plan: PipelinePlan) -> list[str]:
    machines = _counted(plan.num_workers, "CPU core")
    if plan.gpu is not None:
        machines += f" and {format_count(plan.num_gpus)} {plan.gpu}"
    read = f"{format_count(plan.nprobe)} of {format_count(plan.num_lists)} lists" if plan.nprobe else "all vectors"
    ranges = f"{format_count(plan.list_ranges)} ranges of lists; a row goes to {plan.ranges_per_row:g} of them (F)"
    return [
        f"{_counted(plan.num_tokens, 'token')}: {_counted(plan.num_documents, 'document')},"
        f" {format_size(plan.text_bytes)} of text, {_counted(plan.num_chunks, 'chunk')}",
        f"{_counted(plan.num_vectors, 'vector')} of {_counted(plan.dimension, 'dimension')} by {plan.encoder}",
        f"on {machines}, files in {'an object store' if plan.store == 's3' else 'a file system'}",
        f"shards  {format_count(plan.num_shards)} of {_counted(plan.shard_chunks, 'chunk')}",
        f"index   {plan.factory}, {_counted(plan.num_parts, 'part')}",
        f"join    each row reads {read}; {ranges if plan.list_ranges > 1 else 'one range of lists'}",
    ]


def _times(stage: StageForecast, *, has_gpus: bool) -> dict[str, object]:
    gpu = {"GPU hours": _number(stage.gpu_hours)} if has_gpus else {}
    return {
        "stage": stage.stage,
        "core hours": _number(stage.cpu_hours),
        **gpu,
        "hours": _number(stage.wall_hours),
        "serial_s": stage.serial_s,
        "memory_bytes": stage.memory_bytes,
        "tasks": stage.num_tasks,
        "files": stage.num_files,
        "cost": None if stage.cost is None else _number(stage.cost),
    }


def _bytes(stage: StageForecast) -> dict[str, object]:
    return {
        "stage": stage.stage,
        "read_bytes": stage.read_bytes,
        "written_bytes": stage.written_bytes,
        "shuffled_bytes": stage.shuffled_bytes,
        "stored_bytes": stage.stored_bytes,
        "moved by a worker, bytes/s": f"{format_size(stage.io_bytes_per_s)}/s",
    }


def _rate(stage: StageForecast, rate: PlannedRate, origin: int) -> dict[str, object]:
    return {
        "stage": stage.stage,
        "rate": rate.name,
        "per second": _number(rate.rate_per_s),
        "of a": rate.unit_of,
        "hours": _number(rate.hours),
        "origin": f"[{origin}]",
    }


def _origins(plan: PipelinePlan) -> list[str]:
    origins = [f"averages of text: {plan.averages_origin}", f"lists of a row: {plan.probes_origin}"]
    return [*origins, f"F: {plan.ranges_origin}"] if plan.list_ranges > 1 else origins


def _notes(plan: PipelinePlan) -> list[str]:
    notes = [
        "Hours are those of processors: they hold if storage moves the bytes of each worker as fast as shown. Core hours are "
        "those of the rates, and the time in which a command starts, plans and commits.",
        "Memory is that of a worker with one process. Shuffled bytes are part of what is read and written, and are there until "
        "the stage has committed. 'dedup' is for one test set.",
        "The total is the sum of the stages; of memory and of bytes/s it is the most of a stage.",
    ]
    if plan.factory_note:
        notes.append(f"{plan.factory_note}.")
    if not plan.total.fits_memory:
        names = ", ".join(stage.stage for stage in plan.stages if not stage.fits_memory)
        notes.append(f"More memory than a worker has is needed by: {names}. Their times assume that it is there.")
    if plan.total.cost is None and any(stage.cost is not None for stage in plan.stages):
        notes.append("Stages on GPUs have no cost without the price of a gpu-hour.")
    elif plan.total.cost is None:
        notes.append("There is no cost without the price of a cpu-hour.")
    elif plan.store == "s3":
        notes.append("Requests are counted once for each file that stays and each task: the least that there are.")
    if plan.storage_cost_per_month is not None:
        notes.append(f"Storage costs {plan.storage_cost_per_month:,.2f} a month.")
    return notes


def _number(value: float) -> int | float:
    """A number with at most three digits that mean something, or a whole one."""
    return round(value) if value >= 100 else float(f"{value:.3g}")
