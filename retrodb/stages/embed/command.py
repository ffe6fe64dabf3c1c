"""Stage embed: every live, screened key chunk gets its vector in a space, and so do the rows of the query sets.

Existing vectors never change. A chunk whose text has a vector in the space gets the same vector without any computation. The
plan decides which rows are computed together: it has their windows and token budget, but not workers and memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from retrodb.encode.encoder import Encoder, OutOfDeviceMemory
from retrodb.engine.run import add_counts, run_exists
from retrodb.engine.task import NoResult, Task
from retrodb.format.arrays import save_array
from retrodb.format.json_codec import to_plain_object
from retrodb.format.kinds import path_of
from retrodb.stages.context import Context
from retrodb.stages.embed.codes_only import PreparedCodes, prepare_codes
from retrodb.stages.embed.embed_plan import EmbedPlan, EmbedResult, plan_embed
from retrodb.stages.embed.pending import PendingRows, own_ids
from retrodb.stages.embed.rate import estimate_rates, measure_rates
from retrodb.stages.embed.reuse import ReusableVectors, VectorFile, find_reusable_in_groups
from retrodb.stages.embed.space_encoder import EncoderHardware, load_encoder
from retrodb.stages.embed.task import KIND, STAGE_VERSION, EmbedPayload, EncodingTotals, run_embed_task
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity


@dataclass(frozen=True)
class _RunPlan:
    """What the run's id follows from: rows that are computed together have the same bytes in every run."""

    space: str
    fingerprint: str
    window_rows: int
    batch_tokens: int
    pending: tuple[tuple[str, str, int, str], ...]  # query set, path, first chunk, digest of the rows
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
        return replace(plan.result, rates=estimate_rates(plan.view, encoder, own_ids(plan.pending)))
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
    if run_exists(context.storage, "embed", _run_plan(plan, encoder, half)):
        note = "an earlier attempt ran out of memory"
    else:
        try:
            return _embed(context, plan, result, encoder, plan.hardware)
        except OutOfDeviceMemory as error:
            note = error.what
    load_encoder.cache_clear()  # else the weights of the first encoder stay in the memory that is short
    hardware = replace(plan.hardware, batch_tokens=half)
    encoder = load_encoder(plan.params, hardware)
    note += f": planned again with {half:,}"
    result = replace(result, batch_tokens=encoder.provenance.batch_tokens, note=note)
    return _embed(context, plan, result, encoder, hardware)


def _run_plan(plan: EmbedPlan, encoder: Encoder, batch_tokens: int) -> _RunPlan:
    pending = tuple(
        (part.query_set, part.chunks.path, part.chunks.first_chunk, identity((part.rows.bitmap or b"").hex()))
        for part in plan.pending
    )
    return _RunPlan(plan.space, plan.entry.fingerprint, encoder.provenance.window_rows, batch_tokens, pending)


def _embed(
    context: Context, plan: EmbedPlan, result: EmbedResult, encoder: Encoder, hardware: EncoderHardware
) -> EmbedResult:
    """Run all tasks with one token budget and commit their files."""
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
    reusable = _reusable_vectors(plan, codes.samples if codes else ())
    tasks = [
        _task(transaction, plan, encoder, part, vectors, codes)
        for part, vectors in zip(plan.pending, reusable, strict=True)
    ]
    function = partial(run_embed_task, params=plan.params, hardware=hardware, totals=totals)
    engine = context.engine.with_processes(hardware.gpus)
    records = transaction.run_tasks(tasks, function, engine=engine, unit="chunks", rate_of="tokens")
    transaction.add_files(records)
    counts = transaction.counts = add_counts(records)
    rates = measure_rates(encoder, totals, counts, hardware.gpus, time.perf_counter() - start)
    return replace(
        result,
        snapshot=transaction.commit().number,
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
    pending: PendingRows,
    reusable: ReusableVectors,
    codes: PreparedCodes | None,
) -> Task[EmbedPayload, NoResult]:
    """The task for one file of chunks. Where vectors are reused, their places are published in the run's folder."""
    origins = None
    if len(reusable.origins):
        file = f"reuse/{pending.query_set}-{pending.chunks.first_chunk}.npy"
        origins = path_of("runs", run=transaction.run.id, file=file)
        with transaction.run.storage.stage(origins) as local:
            save_array(local, reusable.origins)
    payload = EmbedPayload(
        run=transaction.run.id,
        space=plan.space,
        fingerprint=plan.entry.fingerprint,
        codebook=codes.codebook if codes else None,
        query_set=pending.query_set,
        chunks=pending.chunks,
        hashes=pending.hashes,
        rows=pending.rows,
        window_rows=encoder.provenance.window_rows,
        origins=origins,
        reuse=tuple(reusable.paths),
    )
    return KIND.task(payload, [identity(reusable.origins.tobytes().hex())], len(pending.rows))


def _reusable_vectors(plan: EmbedPlan, samples: Sequence[VectorFile]) -> Iterator[ReusableVectors]:
    """For each part of the pending rows the vectors in the space, or in a sample, of its texts."""
    records = plan.view.coverage("vectors", plan.space).records
    files = [VectorFile(record.path, record.first_chunk + record.row_set.present) for record in records]
    hashes = (plan.view.query_set(part.query_set).text_hashes(part.ids) for part in plan.pending)
    return find_reusable_in_groups(plan.view.chunks, [*files, *samples], hashes)
