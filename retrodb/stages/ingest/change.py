"""What an ingest commits: shards, tombstones of what they replace, held-out documents, rejects, and the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.config import IngestParams, to_mapping
from retrodb.engine.run import Run, add_counts
from retrodb.engine.task import TaskRecord
from retrodb.format.entries import Entry, QueriesEntry, SourceEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord, ShardRecord
from retrodb.stages.ingest.inputs import Inputs, mirror_identity
from retrodb.stages.ingest.read_inputs import CRASHED
from retrodb.stages.ingest.tokenize import shard_task
from retrodb.stages.ingest.upsert import Decisions, Stale
from retrodb.store import conflict_keys
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
class Outcome:
    """All that the two passes found out."""

    decisions: Decisions
    rejects: pa.Table
    cut: Sequence[TaskRecord[Any]]  # shards of the database
    held_out: Sequence[TaskRecord[Any]]  # files of the held-out query set
    counts: Mapping[str, int]


def ingest_change(view: View, run: Run, found: Inputs, params: IngestParams, outcome: Outcome) -> Change:
    """The change of one ingest, its small files already published."""
    decisions = outcome.decisions
    touches_held_out = bool(outcome.held_out) or len(decisions.stale_held_out) > 0
    files = [
        *_tombstone_files(view.storage, run, "", _tombstones(view.chunks, decisions.stale)),
        *_held_out_files(view, outcome.held_out),
    ]
    if len(decisions.stale_held_out):
        held_out = _tombstones(view.query_set(HELD_OUT_SET), decisions.stale_held_out)
        files += _tombstone_files(view.storage, run, HELD_OUT_SET, held_out)
    if outcome.rejects.num_rows:
        write = partial(write_table, table=outcome.rejects)
        files.append(publish(view.storage, "rejects", path_of("rejects", task=run.id), write, name=params.source))
    inputs, drops = _inputs_files(view, run, found, params, outcome)
    mirror = mirror_identity(found) if params.mirror else None
    entries: dict[str, Entry] = {f"source/{params.source}": SourceEntry(run.id, mirror)}
    if touches_held_out:
        entries[f"queries/{HELD_OUT_SET}"] = QueriesEntry("ingest --holdout")
    return Change(
        transaction=run.id,
        command="ingest",
        arguments=to_mapping(params),
        clock=run.clock,
        conflict_keys=conflict_keys.ingest(params.source, HELD_OUT_SET if touches_held_out else None),
        shards=_new_shards(outcome.cut, params.source),
        files=[*files, *inputs],
        drops=drops,
        entries=entries,
        counts={**outcome.counts, **add_counts(outcome.cut)},
    )


def _new_shards(records: Sequence[TaskRecord[Any]], source: str) -> list[NewShard]:
    shards = []
    for record in records:
        files = iter(record.files)
        for number, shard in enumerate(record.result["shards"]):
            own = tuple(islice(files, shard["files"]))
            placed = ShardRecord(shard_task(record.task, number), source, shard["chunks"], shard["documents"])
            shards.append(NewShard(placed, own))
    return shards


def _held_out_files(view: View, records: Sequence[TaskRecord[Any]]) -> list[FileRecord]:
    """The files of held-out documents under their query rows, which follow those given earlier."""
    has_rows = view.snapshot.entry(QueriesEntry, HELD_OUT_SET) is not None
    first = view.query_set(HELD_OUT_SET).end if has_rows else 0
    placed = []
    for shard in _new_shards(records, ""):
        placed += [replace(file, kind="queries", name=HELD_OUT_SET, first_chunk=first) for file in shard.files]
        first += shard.record.num_chunks
    return placed


def _tombstones(chunks: ChunkSet, stale: Stale) -> list[Tombstone]:
    """Tombstones over whole documents, given by their first chunk ids; of those that compaction dropped, over the first row."""
    tombstones = []
    for reason, ids in ((SUPERSEDED, stale.superseded), (REMOVED, stale.missing)):
        for record in chunks.ranges:
            end = record.first_chunk + record.num_chunks
            first_rows = ids[np.searchsorted(ids, record.first_chunk) : np.searchsorted(ids, end)] - record.first_chunk
            if len(first_rows):
                layout = chunks.layout(record)
                is_there = layout.document_of(first_rows) >= 0
                rows = np.union1d(layout.rows_of(first_rows[is_there]), first_rows[~is_there])
                tombstones.append(tombstone(record.first_chunk, record.num_chunks, reason, rows))
    return tombstones


def _tombstone_files(storage: Storage, run: Run, query_set: str, tombstones: list[Tombstone]) -> list[FileRecord]:
    if not tombstones:
        return []
    path = path_of("tombstones", task=identity(run.id, "tombstones", query_set))
    write = partial(write_table, table=tombstones_to_table(tombstones))
    return [publish(storage, "tombstones", path, write, name=query_set)]


def _inputs_files(
    view: View, run: Run, found: Inputs, params: IngestParams, outcome: Outcome
) -> tuple[list[FileRecord], list[DropRecord]]:
    """The file that remembers what was read whole, and the earlier ones that no longer hold."""
    import pyarrow as pa

    from retrodb.format.schemas import INPUTS

    unread = {row["path"] for row in outcome.rejects.to_pylist() if row["reason"] == CRASHED}
    tables = [found.table(unread)] if params.limit is None else []
    drops = []
    if len(outcome.decisions.stale) or len(outcome.decisions.stale_held_out):
        drops = [DropRecord(OP_DROP_FILE, record.path) for record in view.manifest.files("inputs", params.source)]
        tables.append(found.skipped_table())
    table = pa.concat_tables([INPUTS.empty_table(), *tables])
    if not table.num_rows:
        return [], drops
    path = path_of("inputs", name=params.source, task=run.id)
    return [publish(view.storage, "inputs", path, partial(write_table, table=table), name=params.source)], drops
