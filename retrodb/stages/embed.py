"""Stage embed: every live, screened key chunk gets its vector in a space; so do the rows of the query sets.

What is embedded already stays; a chunk text that the space has seen gets the same vector again without any computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from retrodb.config import EmbedParams, from_mapping, to_mapping
from retrodb.encode.identity import Encoder, EncoderIdentity
from retrodb.engine.run import Run, add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import MismatchError, UsageError
from retrodb.format.arrays import BoolArray
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.embed_task import Hardware, load_encoder, run_embed_task
from retrodb.stages.reuse import plan_reuse
from retrodb.store import marks
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.view.view import View

STAGE_VERSION = 1


@dataclass(frozen=True)
class EmbedResult:
    """What an embed run did."""

    snapshot: int
    space: str
    encoder: str
    dimension: int
    metric: str
    chunks: int  # that got a vector
    reused: int  # of those, by an equal text that had one
    query_rows: int  # rows of query sets that got a vector
    tokens: int  # of the encoder, special ones included
    truncated: int  # chunks longer than the encoder's maximum, of which only the beginning was read
    device: str
    compute_dtype: str
    dry_run: bool = False


@dataclass(frozen=True)
class _Job:
    """The rows of one file of chunks that want vectors; `query_set` is "" for the database's own."""

    query_set: str
    chunks: FileRecord
    hashes: FileRecord
    wanted: BoolArray  # (num_chunks,)


def run_embed(
    context: Context, options: Mapping[str, Any], hardware: Hardware, *, space: str | None = None, dry_run: bool = False
) -> EmbedResult:
    """Embed what has no vector yet.

    Args:
        options: fields of `EmbedParams`; for a space that exists they must give the same identity.

    Raises:
        MismatchError: the encoder is another one than the space's, both shown.
        UsageError: a new space without an encoder.
    """
    view = context.view()
    name = space or view.snapshot.default_space
    params = _params(view, name, options)
    hardware = replace(hardware, threads=context.num_workers)
    encoder = load_encoder(params, hardware)
    entry = view.snapshot.entry("space", name)
    if entry is None:
        entry = _entry(params, encoder)
    else:
        check_identity(name, entry, encoder.identity)
    jobs = _jobs(view, name)
    result = _result(view, name, entry, params, encoder, jobs, dry_run)
    if dry_run or not (jobs or view.snapshot.entry("space", name) is None):
        return result
    plan = {
        "version": STAGE_VERSION,
        "space": name,
        "fingerprint": entry["fingerprint"],
        "jobs": [_describe(j) for j in jobs],
    }
    run = open_run(context.storage, "embed", plan, context.clock)
    records = _run_tasks(context, run, view, name, entry, jobs, hardware, params)
    counts = add_counts(records)
    change = Change(
        transaction=run.id,
        command="embed",
        arguments={"space": name, **to_mapping(params)},
        clock=run.clock,
        marks=marks.embed(name),
        files=[file for record in records for file in record.files],
        entries={} if view.snapshot.entry("space", name) else {f"space/{name}": entry},
        counts=counts,
    )
    snapshot = commit(context.storage, view.snapshot, change)
    reused, tokens, truncated = (counts.get(name, 0) for name in ("reused", "tokens", "truncated"))
    return replace(result, snapshot=snapshot.number, reused=reused, tokens=tokens, truncated=truncated)


def check_identity(space: str, entry: Mapping[str, Any], found: EncoderIdentity) -> None:
    """Raises MismatchError when an encoder's vectors do not belong into a space."""
    stored = EncoderIdentity.from_json(entry["identity"])
    if stored != found:
        raise MismatchError(
            f"space '{space}' was made by another encoder ({'; '.join(stored.difference(found))}); "
            f"its fingerprint is {stored.fingerprint()[:16]}, this encoder's {found.fingerprint()[:16]}",
            remedy="Name the space's own encoder, or fill a new space with '--space NAME --encoder ...'.",
        )


def _params(view: View, name: str, options: Mapping[str, Any]) -> EmbedParams:
    given = {key: value for key, value in options.items() if value is not None}
    entry = view.snapshot.entry("space", name)
    if entry is not None:
        return from_mapping(EmbedParams, {**entry["params"], **given}, where=f"space '{name}'")
    defaults = view.snapshot.entry("default", "encoder") if name == view.snapshot.default_space else {}
    if "encoder" not in {**defaults, **given}:
        raise UsageError(f"space '{name}' is new and no encoder is named", remedy="Add '--encoder FOLDER-OR-NAME'.")
    base = {} if "encoder" in given else defaults
    return from_mapping(EmbedParams, {**base, **given}, where="options")


def _entry(params: EmbedParams, encoder: Encoder) -> dict[str, Any]:
    return {
        "params": {key: value for key, value in to_mapping(params).items() if value is not None},
        "identity": encoder.identity.to_json(),
        "fingerprint": encoder.identity.fingerprint(),
        "dimension": encoder.identity.dimension,
        "metric": encoder.identity.metric,
    }


def _jobs(view: View, space: str) -> list[_Job]:
    """All rows that want a vector and have none."""
    jobs = []
    for query_set in ("", *view.snapshot.names("queries")):
        chunks = view.query_set(query_set) if query_set else view.chunks
        covered = view.query_vectors(query_set, space) if query_set else view.coverage("vectors", space)
        for record in chunks.ranges:
            span = record.first_chunk, record.num_chunks
            keys = chunks.key_mask(*span) if query_set else view.wanted_mask(*span)
            wanted = keys & ~covered.covered_mask(*span)
            if wanted.any():
                jobs.append(_Job(query_set, chunks.file("chunks", *span), chunks.file("hashes", *span), wanted))
    return jobs


def _describe(job: _Job) -> list[Any]:
    rows = RowSet.from_mask(job.wanted)
    return [
        job.query_set,
        job.chunks.path,
        job.chunks.first_chunk,
        identity(rows.bitmap.hex() if rows.bitmap else "all"),
    ]


def _run_tasks(
    context: Context,
    run: Run,
    view: View,
    space: str,
    entry: Mapping[str, Any],
    jobs: list[_Job],
    hardware: Hardware,
    params: EmbedParams,
) -> list[TaskRecord]:
    known = view.coverage("vectors", space)
    tasks = [
        _task(context, run, view, space, entry, job, plan_reuse(view, known, job.hashes, job.wanted)) for job in jobs
    ]
    function = partial(run_embed_task, params=to_mapping(params), hardware=hardware)
    return context.engine.in_one_process().run(run, tasks, function, context.progress)


def _task(
    context: Context, run: Run, view: View, space: str, entry: Mapping[str, Any], job: _Job, reuse: list[dict[str, Any]]
) -> Task:
    view.files.open(job.chunks)
    rows = RowSet.from_mask(job.wanted)
    payload = {
        "run": run.id,
        "space": space,
        "fingerprint": entry["fingerprint"],
        "query_set": job.query_set,
        "chunks": job.chunks.path,
        "hashes": job.hashes.path,
        "first_chunk": job.chunks.first_chunk,
        "num_chunks": job.chunks.num_chunks,
        "rows": rows.bitmap.hex() if rows.bitmap is not None else None,
        "reuse": reuse,
    }
    inputs = [job.chunks.digest.sha256.hex(), entry["fingerprint"]]
    return make_task("embed", STAGE_VERSION, payload, inputs, int(job.wanted.sum()))


def _result(
    view: View,
    name: str,
    entry: Mapping[str, Any],
    params: EmbedParams,
    encoder: Encoder,
    jobs: list[_Job],
    dry_run: bool,
) -> EmbedResult:
    return EmbedResult(
        snapshot=view.snapshot.number,
        space=name,
        encoder=params.encoder,
        dimension=entry["dimension"],
        metric=entry["metric"],
        chunks=sum(int(job.wanted.sum()) for job in jobs if not job.query_set),
        reused=0,
        query_rows=sum(int(job.wanted.sum()) for job in jobs if job.query_set),
        tokens=0,
        truncated=0,
        device=encoder.provenance.device,
        compute_dtype=encoder.provenance.compute_dtype,
        dry_run=dry_run,
    )
