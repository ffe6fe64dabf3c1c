"""Stage embed: every live, screened key chunk gets its vector in a space; so do the rows of the query sets.

What is embedded already stays; a chunk text that the space has seen gets the same vector again without any computation. What is
computed together follows from the plan: rows, window and token budget are in it, workers and memory are not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from retrodb.config import EmbedParams, from_mapping, to_mapping
from retrodb.encode.encoder import Encoder, OutOfDeviceMemory
from retrodb.encode.identity import EncoderIdentity
from retrodb.engine.run import Run, add_counts, open_run, run_exists
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import MismatchError, UsageError
from retrodb.format.arrays import BoolArray, Int64Array, save_array
from retrodb.format.entries import Entry, QueriesEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.embed.codes_only import CodesOnly, prepare_codes
from retrodb.stages.embed.rate import Rates, measure_rates, project
from retrodb.stages.embed.reuse import ReusableVectors, VectorFile, find_reusable
from retrodb.stages.embed.task import Hardware, Meter, load_encoder, run_embed_task
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.view.view import SELF, View

STAGE_VERSION = 2


@dataclass(frozen=True)
class EmbedResult:
    """What an embed run did."""

    snapshot: int
    space: str
    encoder: str
    dimension: int
    metric: str
    chunks: int  # that got a vector
    reused: int  # of those, by an equal text that had one before
    query_rows: int  # rows of query sets that got a vector
    tokens: int  # of the encoder, special ones included
    truncated: int  # chunks longer than the encoder's maximum, of which only the beginning was read
    device: str
    compute_dtype: str
    batch_tokens: int  # token budget of a batch; 0 where there are no batches
    rates: Rates | None = None  # of what was computed now; of a sample, in a dry run
    codes_recall: float | None = None  # recall@10 of the codes where vectors are not kept
    note: str = ""  # what was done otherwise than planned
    dry_run: bool = False


@dataclass(frozen=True)
class Job:
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
    hardware = replace(hardware, threads=context.num_workers, gpus=_num_gpus(params, hardware.device))
    encoder = load_encoder(params, hardware)
    stored = view.snapshot.entry(SpaceEntry, name)
    if stored is not None:
        check_identity(name, stored, encoder.identity)
    entry = stored or _entry(params, encoder)
    jobs = find_jobs(view, name)
    result = _result(view, name, entry, params, encoder, jobs, dry_run)
    if dry_run:
        return replace(result, rates=project(view, encoder, _chunk_ids(jobs)))
    if not jobs and stored is not None:
        return result
    work = _Work(context, view, name, entry, params, jobs)
    if not run_exists(context.storage, "embed", work.plan(encoder, halved=True)):
        try:
            return work.run(result, encoder, hardware)
        except OutOfDeviceMemory as error:
            note = error.what
    else:
        note = "an earlier attempt ran out of memory"
    load_encoder.cache_clear()  # the weights of the first one would stay where memory is short
    hardware = replace(hardware, batch_tokens=max(1, encoder.provenance.batch_tokens // 2))
    encoder = load_encoder(params, hardware)
    note += f": planned again with {hardware.batch_tokens:,}"
    return work.run(replace(result, batch_tokens=encoder.provenance.batch_tokens, note=note), encoder, hardware)


def check_identity(space: str, entry: SpaceEntry, found: EncoderIdentity) -> None:
    """Raises MismatchError when an encoder's vectors do not belong into a space."""
    stored = EncoderIdentity.from_json(entry.identity)
    if stored != found:
        raise MismatchError(
            f"space '{space}' was made by another encoder ({'; '.join(stored.difference(found))}); "
            f"its fingerprint is {stored.fingerprint()[:16]}, this encoder's {found.fingerprint()[:16]}",
            remedy="Name the space's own encoder, or fill a new space with '--space NAME --encoder ...'.",
        )


def find_jobs(view: View, space: str) -> list[Job]:
    """All rows that want a vector and have none."""
    jobs = []
    for query_set in ("", *view.snapshot.names(QueriesEntry)):
        chunks = view.query_set(query_set) if query_set else view.chunks
        covered = view.query_vectors(query_set or SELF, space)
        for record in chunks.ranges:
            span = record.first_chunk, record.num_chunks
            keys = chunks.key_mask(*span) if query_set else view.embeddable_mask(*span)
            wanted = keys & ~covered.covered_mask(*span)
            if wanted.any():
                jobs.append(Job(query_set, chunks.file("chunks", *span), chunks.file("hashes", *span), wanted))
    return jobs


@dataclass(frozen=True)
class _Work:
    """One run: all that it follows from, before the hardware is known to suffice."""

    context: Context
    view: View
    space: str
    entry: SpaceEntry
    params: EmbedParams
    jobs: list[Job]

    def plan(self, encoder: Encoder, *, halved: bool = False) -> dict[str, Any]:
        """What the run's id follows from; `halved` is the plan for when the memory does not suffice."""
        budget = encoder.provenance.batch_tokens
        return {
            "version": STAGE_VERSION,
            "space": self.space,
            "fingerprint": self.entry.fingerprint,
            "window_rows": encoder.provenance.window_rows,
            "batch_tokens": max(1, budget // 2) if halved else budget,
            "jobs": [_describe(job) for job in self.jobs],
        }

    def run(self, result: EmbedResult, encoder: Encoder, hardware: Hardware) -> EmbedResult:
        """Run all tasks and commit what they made."""
        run = open_run(self.context.storage, "embed", self.plan(encoder), self.context.clock)
        codes = None
        if self.params.keep_vectors is False:
            ids = _chunk_ids(self.jobs)
            codes = prepare_codes(self.view, run, self.space, self.params, self.entry, encoder, ids)
        meter, start = Meter(), time.perf_counter()
        tasks = [self._task(run, encoder, job, codes) for job in self.jobs]
        function = partial(run_embed_task, params=to_mapping(self.params), hardware=hardware, meter=meter)
        engine = self.context.engine.with_processes(hardware.gpus)
        records = engine.run(run, tasks, function, self.context.progress, unit="chunks", rate_of="tokens")
        counts = add_counts(records)
        rates = measure_rates(encoder, meter, counts, hardware.gpus, time.perf_counter() - start)
        snapshot = commit(self.context.storage, self.view.snapshot, self._change(run, records, counts, codes))
        reused, tokens, truncated = (counts.get(name, 0) for name in ("reused", "tokens", "truncated"))
        recall = codes.recall if codes else None
        done = replace(result, snapshot=snapshot.number, reused=reused, tokens=tokens, truncated=truncated)
        return replace(done, rates=rates, codes_recall=recall)

    def _task(self, run: Run, encoder: Encoder, job: Job, codes: CodesOnly | None) -> Task[Any, Any]:
        for record in (job.chunks, job.hashes):
            self.view.files.open(record)
        known = self._known(job, codes)
        origins = None
        if len(known.origins):
            origins = path_of("runs", run=run.id, file=f"reuse/{job.query_set or 'own'}-{job.chunks.first_chunk}.npy")
            with run.storage.stage(origins) as local:
                save_array(local, known.origins)
        rows = RowSet.from_mask(job.wanted)
        payload = {
            "run": run.id,
            "space": self.space,
            "fingerprint": self.entry.fingerprint,
            "codebook": codes.codebook if codes else None,
            "query_set": job.query_set,
            "chunks": job.chunks.path,
            "hashes": job.hashes.path,
            "first_chunk": job.chunks.first_chunk,
            "num_chunks": job.chunks.num_chunks,
            "stored": job.chunks.rows.hex() if job.chunks.rows is not None else None,
            "rows": rows.bitmap.hex() if rows.bitmap is not None else None,
            "window_rows": encoder.provenance.window_rows,
            "origins": origins,
            "reuse": known.paths,
        }
        inputs = [job.chunks.digest.sha256.hex(), self.entry.fingerprint, identity(known.origins.tobytes().hex())]
        return make_task("embed", STAGE_VERSION, payload, inputs, int(job.wanted.sum()))

    def _known(self, job: Job, codes: CodesOnly | None) -> ReusableVectors:
        """Texts of the job that have a vector already."""
        chunks = self.view.query_set(job.query_set) if job.query_set else self.view.chunks
        hashes = chunks.text_hashes(job.chunks.first_chunk + np.flatnonzero(job.wanted))
        vectors = self.view.coverage("vectors", self.space).records
        sources = [VectorFile(record.path, record.first_chunk + record.row_set.present) for record in vectors]
        return find_reusable(self.view.chunks, [*sources, *(codes.samples if codes else [])], hashes)

    def _change(
        self, run: Run, records: list[TaskRecord[Any]], counts: dict[str, int], codes: CodesOnly | None
    ) -> Change:
        is_new = self.view.snapshot.entry(SpaceEntry, self.space) is None
        entries: dict[str, Entry | None] = {f"space/{self.space}": self.entry} if is_new else {}
        if codes and codes.entry:
            entries[f"index/{self.space}"] = codes.entry
        return Change(
            transaction=run.id,
            command="embed",
            arguments={"space": self.space, **to_mapping(self.params)},
            clock=run.clock,
            conflict_keys=conflict_keys.index(self.space) if codes else conflict_keys.embed(self.space),
            files=[*(codes.files if codes else ()), *(file for record in records for file in record.files)],
            entries=entries,
            counts=counts,
        )


def _num_gpus(params: EmbedParams, device: str) -> int:
    if params.encoder.startswith("hashing:"):
        return 1
    from retrodb.encode.device import num_gpus

    return num_gpus(device)


def _params(view: View, name: str, options: Mapping[str, Any]) -> EmbedParams:
    given = {key: value for key, value in options.items() if value is not None}
    entry = view.snapshot.entry(SpaceEntry, name)
    if entry is not None:
        if "keep_vectors" in given and given["keep_vectors"] != (entry.params.keep_vectors is not False):
            raise UsageError(
                f"space '{name}' {'does not keep' if given['keep_vectors'] else 'keeps'} its vectors",
                remedy="Fill a new space with '--space NAME --encoder ...'.",
            )
        return from_mapping(EmbedParams, {**to_mapping(entry.params), **given}, where=f"space '{name}'")
    default = view.snapshot.default_encoder if name == view.snapshot.default_space else None
    defaults = to_mapping(default.params) if default else {}
    if "encoder" not in {**defaults, **given}:
        raise UsageError(f"space '{name}' is new and no encoder is named", remedy="Add '--encoder FOLDER-OR-NAME'.")
    base = {} if "encoder" in given else defaults
    params = from_mapping(EmbedParams, {**base, **given}, where="options")
    if params.factory is not None and params.keep_vectors is not False:
        raise UsageError(
            "a factory is for codes without vectors", remedy="Add '--no-keep-vectors', or give it to 'retrodb index'."
        )
    return params


def _entry(params: EmbedParams, encoder: Encoder) -> SpaceEntry:
    identity_ = encoder.identity
    return SpaceEntry(params, identity_.to_json(), identity_.fingerprint(), identity_.dimension, identity_.metric)


def _chunk_ids(jobs: list[Job]) -> Int64Array:
    """The database's chunks among the wanted rows."""
    ids = [job.chunks.first_chunk + np.flatnonzero(job.wanted) for job in jobs if not job.query_set]
    return np.concatenate([np.empty(0, np.int64), *ids])


def _describe(job: Job) -> list[Any]:
    rows = RowSet.from_mask(job.wanted)
    wanted = identity(rows.bitmap.hex() if rows.bitmap else "all")
    return [job.query_set, job.chunks.path, job.chunks.first_chunk, wanted]


def _result(
    view: View,
    name: str,
    entry: SpaceEntry,
    params: EmbedParams,
    encoder: Encoder,
    jobs: list[Job],
    dry_run: bool,
) -> EmbedResult:
    return EmbedResult(
        snapshot=view.snapshot.number,
        space=name,
        encoder=params.encoder,
        dimension=entry.dimension,
        metric=entry.metric,
        chunks=sum(int(job.wanted.sum()) for job in jobs if not job.query_set),
        reused=0,
        query_rows=sum(int(job.wanted.sum()) for job in jobs if job.query_set),
        tokens=0,
        truncated=0,
        device=encoder.provenance.device,
        compute_dtype=encoder.provenance.compute_dtype,
        batch_tokens=encoder.provenance.batch_tokens,
        dry_run=dry_run,
    )
