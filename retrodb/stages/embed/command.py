"""Stage embed: every live, screened key chunk gets its vector in a space, and so do the rows of the query sets.

Existing vectors never change. A chunk whose text has a vector in the space gets the same vector without any computation. The
plan decides which rows are computed together: it has their windows and token budget, but not workers and memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from retrodb.encode.encoder import Encoder, OutOfDeviceMemory
from retrodb.engine.run import add_counts, forget_run, open_run, run_exists
from retrodb.engine.task import NoResult, Task
from retrodb.engine.task_memory import memory_of
from retrodb.format.json_codec import to_plain_object
from retrodb.memory import require_memory
from retrodb.stages.context import Context
from retrodb.stages.embed.codes_only import PreparedCodes, prepare_codes
from retrodb.stages.embed.embed_plan import EmbedPlan, EmbedResult, plan_embed
from retrodb.stages.embed.pending import keep_complete
from retrodb.stages.embed.rate import estimate_rates, measure_rates
from retrodb.stages.embed.reuse import find_reusable
from retrodb.stages.embed.reuse_tasks import ReusableVectors
from retrodb.stages.embed.space_encoder import EncoderHardware, encoder_bytes, load_encoder
from retrodb.stages.embed.task import KIND, STAGE_VERSION, EmbedPayload, EncodingTotals, run_embed_task
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys


@dataclass(frozen=True)
class _RunPlan:
    """What the run's id follows from: rows that are computed together have the same bytes in every run."""

    space: str
    fingerprint: str
    window_rows: int
    batch_tokens: int
    pending: tuple[tuple[str, str, int, str | None], ...]  # query set, path, first chunk, digest of the rows
    version: int = STAGE_VERSION


def run_embed(
    context: Context,
    options: Mapping[str, object],
    hardware: EncoderHardware,
    *,
    space: str | None = None,
    dry_run: bool = False,
) -> EmbedResult:
    """Embed all rows that have no vector yet. A dry run encodes a small sample to estimate the time.

    Args:
        options: fields of `EmbedParams`, None for not given. For a space that exists they must give the same identity.

    Raises:
        MismatchError: when the encoder is not that of the space; the message shows the difference.
        UsageError: for a new space without an encoder.
        ConflictError: when the space was dropped or replaced since the plan.
    """
    plan = plan_embed(context, options, hardware, space=space)
    if dry_run:
        encoder = load_encoder(plan.params, plan.hardware)
        return replace(plan.result, rates=estimate_rates(plan.view, encoder, plan.space, plan.pending))
    return execute_embed(context, plan)


def execute_embed(context: Context, plan: EmbedPlan) -> EmbedResult:
    """Compute the planned vectors and commit them.

    When the device runs out of memory, the whole run is repeated with half the token budget of a batch. The rows of a batch
    affect the last bits of a vector, so all vectors of a run are computed with one budget. A run that was halved
    stays halved when it is continued.
    """
    result = replace(plan.result, dry_run=False)
    if not plan.pending and not plan.is_new_space:
        return result
    encoder = load_encoder(plan.params, plan.hardware)
    half = max(1, encoder.provenance.batch_tokens // 2)
    halved = _run_plan(plan, encoder, half)
    if run_exists(context.storage, "embed", halved):
        note = "an earlier attempt ran out of memory"
    else:
        try:
            return _embed(context, plan, result, encoder, plan.hardware)
        except OutOfDeviceMemory as error:
            note = error.what
    open_run(
        context.storage, "embed", halved, context.clock
    )  # first, so that a command that is killed here continues it
    _forget(context, _run_plan(plan, encoder, encoder.provenance.batch_tokens))
    load_encoder.cache_clear()  # else the weights of the first encoder stay in the memory that is short
    hardware = replace(plan.hardware, batch_tokens=half)
    encoder = load_encoder(plan.params, hardware)
    note += f": planned again with {half:,}"
    result = replace(result, batch_tokens=encoder.provenance.batch_tokens, note=note)
    try:
        return _embed(context, plan, result, encoder, hardware)
    except OutOfDeviceMemory:
        _forget(context, halved)
        raise


def _forget(context: Context, run_plan: _RunPlan) -> None:
    if run_exists(context.storage, "embed", run_plan):
        forget_run(open_run(context.storage, "embed", run_plan))


def _run_plan(plan: EmbedPlan, encoder: Encoder, batch_tokens: int) -> _RunPlan:
    pending = tuple((part.query_set, part.chunks.path, part.chunks.first_chunk, part.rows) for part in plan.pending)
    return _RunPlan(plan.space, plan.entry.fingerprint, encoder.provenance.window_rows, batch_tokens, pending)


def _embed(
    context: Context, plan: EmbedPlan, result: EmbedResult, encoder: Encoder, hardware: EncoderHardware
) -> EmbedResult:
    """Run all tasks with one token budget and commit their files."""
    extra_bytes = encoder_bytes(encoder, hardware)
    require_memory(
        f"embedding with {plan.params.encoder}", memory_of(KIND.stage).of_task(0, extra_bytes), context.memory_limit
    )
    keeps_vectors = plan.params.keep_vectors is not False
    transaction = Transaction.open(
        context,
        plan.view,
        "embed",
        conflict_keys.embed(plan.space) if keeps_vectors else conflict_keys.index(plan.space),
        plan=_run_plan(plan, encoder, encoder.provenance.batch_tokens),
        arguments={"space": plan.space, **to_plain_object(plan.params)},
    )
    if plan.is_new_space:
        transaction.set_entry(plan.space, plan.entry)
    codes = None if keeps_vectors else prepare_codes(transaction, plan, encoder)
    totals, start = EncodingTotals(), time.perf_counter()
    reusable = find_reusable(transaction, plan, codes.samples if codes else ())
    tasks = [_task(transaction, plan, encoder, number, reusable, codes) for number in range(len(plan.pending))]
    snapshot = PlannedSnapshot.of(plan.view)
    function = partial(run_embed_task, snapshot=snapshot, params=plan.params, hardware=hardware, totals=totals)
    engine = context.engine.with_processes(hardware.gpus)
    records = transaction.run_tasks(
        tasks, function, engine=engine, extra_bytes=extra_bytes, unit="chunks", rate_of="tokens"
    )
    transaction.add_files(records)
    counts = transaction.counts = add_counts(records)
    rates = measure_rates(encoder, totals, counts, hardware.gpus, time.perf_counter() - start)
    number = transaction.commit().number
    keep_complete(plan.view, plan.pending, plan.space, [record.files[0] for record in records])
    return replace(
        result,
        snapshot=number,
        num_reused=counts.get("reused", 0),
        num_tokens=counts.get("tokens", 0),
        num_truncated=counts.get("truncated", 0),
        rates=rates,
        codes_recall=codes.recall if codes else None,
    )


def _task(
    transaction: Transaction,
    plan: EmbedPlan,
    encoder: Encoder,
    number: int,
    reusable: ReusableVectors | None,
    codes: PreparedCodes | None,
) -> Task[EmbedPayload, NoResult]:
    """The task for one file of chunks, the part of the pending rows with this number."""
    pending = plan.pending[number]
    payload = EmbedPayload(
        run=transaction.run.id,
        space=plan.space,
        fingerprint=plan.entry.fingerprint,
        codebook=codes.codebook if codes else None,
        pending=pending,
        window_rows=encoder.provenance.window_rows,
        part=number,
        reusable=reusable,
    )
    return KIND.task(payload, (), pending.num_rows)
