"""What an ingest commits: shards, tombstones of what they replace, held-out documents, rejects, and the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.config import IngestParams, to_mapping
from retrodb.corpus.split import InputFile
from retrodb.engine.run import Run, add_counts
from retrodb.engine.task import TaskRecord
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord, ShardRecord
from retrodb.stages.cut import shard_task
from retrodb.stages.upsert import Decisions, Stale
from retrodb.store import marks
from retrodb.store.commit import Change, NewShard
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.tombstones import Tombstone, tombstone, tombstones_to_table
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

HELD_OUT_SET = "heldout"
"""Name of the query set and of the test set that `--holdout` fills."""

SUPERSEDED, REMOVED = "superseded", "removed"
"""Reasons of the tombstones that ingest itself sets. Any other reason is a decision that a new ingest does not undo."""


@dataclass(frozen=True)
class Inputs:
    """The files of a run: those to read, and how many were ingested whole before."""

    files: list[InputFile]
    digests: list[str]
    mapping: str  # how records are mapped: a file read with another mapping is another input
    num_skipped: int


@dataclass(frozen=True)
class Outcome:
    """All that the two passes found out."""

    decisions: Decisions
    rejects: pa.Table
    cut: Sequence[TaskRecord]  # shards of the database
    held_out: Sequence[TaskRecord]  # files of the held-out query set
    counts: Mapping[str, int]


def ingest_change(view: View, run: Run, found: Inputs, params: IngestParams, outcome: Outcome) -> Change:
    """The change of one ingest, its small files already published."""
    stale = outcome.decisions.stale, outcome.decisions.stale_held_out
    touches_held_out = bool(outcome.held_out) or any(len(ids) for ids in (stale[1].superseded, stale[1].missing))
    files = [
        *_tombstone_files(view.storage, run, "", _tombstones(view.chunks, stale[0], params.mirror)),
        *_held_out_files(view, outcome.held_out),
    ]
    if touches_held_out and view.snapshot.entry("queries", HELD_OUT_SET):
        held_out = _tombstones(view.query_set(HELD_OUT_SET), stale[1], params.mirror)
        files += _tombstone_files(view.storage, run, HELD_OUT_SET, held_out)
    files += _bookkeeping(view.storage, run, found, params, outcome)
    mirror = identity(sorted(found.digests), found.mapping) if params.mirror else None
    entries: dict[str, Any] = {f"source/{params.source}": {"last_run": run.id, "mirror": mirror}}
    if touches_held_out:
        entries[f"queries/{HELD_OUT_SET}"] = {"from": "ingest --holdout"}
    return Change(
        transaction=run.id,
        command="ingest",
        arguments=to_mapping(params),
        clock=run.clock,
        marks=marks.ingest(params.source, HELD_OUT_SET if touches_held_out else None),
        shards=_new_shards(outcome.cut, params.source),
        files=files,
        entries=entries,
        counts={**outcome.counts, **add_counts(outcome.cut)},
    )


def _new_shards(records: Sequence[TaskRecord], source: str) -> list[NewShard]:
    shards = []
    for record in records:
        files = iter(record.files)
        for number, shard in enumerate(record.result["shards"]):
            own = tuple(islice(files, shard["files"]))
            placed = ShardRecord(shard_task(record.task, number), source, shard["chunks"], shard["documents"])
            shards.append(NewShard(placed, own))
    return shards


def _held_out_files(view: View, records: Sequence[TaskRecord]) -> list[FileRecord]:
    """The files of held-out documents under their query rows, which follow those given earlier."""
    has_rows = view.snapshot.entry("queries", HELD_OUT_SET) is not None
    first = view.query_set(HELD_OUT_SET).end if has_rows else 0
    placed = []
    for shard in _new_shards(records, ""):
        placed += [replace(file, kind="queries", name=HELD_OUT_SET, first_chunk=first) for file in shard.files]
        first += shard.record.num_chunks
    return placed


def _tombstones(chunks: ChunkSet, stale: Stale, mirror: bool) -> list[Tombstone]:
    """Tombstones over whole documents, given by their first chunk ids."""
    tombstones = []
    for reason, ids in ((SUPERSEDED, stale.superseded), (REMOVED, stale.missing if mirror else stale.missing[:0])):
        for record in chunks.ranges:
            end = record.first_chunk + record.num_chunks
            first_rows = ids[np.searchsorted(ids, record.first_chunk) : np.searchsorted(ids, end)] - record.first_chunk
            if len(first_rows):
                rows = chunks.layout(record).rows_of(first_rows)
                tombstones.append(tombstone(record.first_chunk, record.num_chunks, reason, rows))
    return tombstones


def _tombstone_files(storage: Storage, run: Run, query_set: str, tombstones: list[Tombstone]) -> list[FileRecord]:
    if not tombstones:
        return []
    path = path_of("tombstones", task=identity(run.id, "tombstones", query_set))
    write = partial(write_table, table=tombstones_to_table(tombstones))
    return [publish(storage, "tombstones", path, write, name=query_set)]


def _bookkeeping(storage: Storage, run: Run, found: Inputs, params: IngestParams, outcome: Outcome) -> list[FileRecord]:
    """The rejects, and the inputs that were read whole."""
    files = []
    if outcome.rejects.num_rows:
        write = partial(write_table, table=outcome.rejects)
        files.append(publish(storage, "rejects", path_of("rejects", task=run.id), write, name=params.source))
    if params.limit is None:
        write = partial(write_table, table=_inputs_table(found))
        files.append(
            publish(storage, "inputs", path_of("inputs", name=params.source, task=run.id), write, name=params.source)
        )
    return files


def _inputs_table(found: Inputs) -> pa.Table:
    import pyarrow as pa

    from retrodb.format.schemas import INPUTS

    rows = [
        {"path": file.path, "size_bytes": file.size_bytes, "digest": digest, "mapping": found.mapping}
        for file, digest in zip(found.files, found.digests, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=INPUTS)
