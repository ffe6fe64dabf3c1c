"""What an ingest commits: shards, tombstones of the documents they replace, held-out documents, rejects, and the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from retrodb.config import IngestParams
from retrodb.engine.task import TaskRecord
from retrodb.format.entries import QueriesEntry, SourceEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import ShardRecord
from retrodb.stages.ingest.inputs import IngestedFile, Inputs, inputs_table, mirror_identity
from retrodb.stages.ingest.read_inputs import WHOLE_FILE
from retrodb.stages.ingest.remembered import reading_options
from retrodb.stages.ingest.tokenize import TokenizeResult, shard_task
from retrodb.stages.ingest.upsert import Decisions, StaleDocuments
from retrodb.stages.transaction import Transaction
from retrodb.store.chunk_ids import NewShard
from retrodb.view.tombstones import Tombstone

if TYPE_CHECKING:
    import pyarrow as pa

HELD_OUT_SET = "heldout"
"""Name of the query set and of the test set that `--holdout` fills."""

SUPERSEDED, REMOVED = "superseded", "removed"
"""Reasons of the tombstones of an ingest. Any other reason is a decision that a new ingest does not undo."""

_MAX_INPUTS_FILES = 16  # opening one takes a millisecond, and every ingest of the source opens all

TokenizeRecord: TypeAlias = TaskRecord[TokenizeResult]


def add_shards(transaction: Transaction, records: Sequence[TokenizeRecord], source: str) -> None:
    """Add the new shards. They get their chunk ids at commit."""
    for record in records:
        for number, shard in enumerate(record.result.shards):
            task = shard_task(record.task, number)
            shard_record = ShardRecord(task, source, shard.num_chunks, shard.num_documents)
            transaction.shards.append(NewShard(shard_record, shard.files))


def add_held_out(transaction: Transaction, records: Sequence[TokenizeRecord]) -> None:
    """Add the files of held-out documents. Their rows follow those of earlier held-out documents."""
    view = transaction.view
    has_rows = view.snapshot.entry(QueriesEntry, HELD_OUT_SET) is not None
    first = view.query_set(HELD_OUT_SET).end if has_rows else 0
    for record in records:
        for shard in record.result.shards:
            transaction.files += [
                replace(file, kind="queries", name=HELD_OUT_SET, first_chunk=first) for file in shard.files
            ]
            first += shard.num_chunks
    if records:
        transaction.set_entry(HELD_OUT_SET, QueriesEntry("ingest --holdout"))


def add_stale(transaction: Transaction, query_set: str, stale: Sequence[StaleDocuments]) -> None:
    """Delete the documents that the input replaces or no longer has."""
    if stale:
        tombstones = [Tombstone(*item.span, item.reason, active=True, rows=item.rows) for item in stale]
        transaction.add_tombstones(tombstones, query_set=query_set)
        if query_set == HELD_OUT_SET:
            transaction.set_entry(HELD_OUT_SET, QueriesEntry("ingest --holdout"))


def add_rejects(transaction: Transaction, rejects: pa.Table, source: str) -> None:
    """Keep the rejected records for the user."""
    if rejects.num_rows:
        path = path_of("rejects", task=transaction.run.id)
        transaction.publish("rejects", path, partial(write_table, table=rejects), name=source)


def add_inputs(
    transaction: Transaction, inputs: Inputs, params: IngestParams, decisions: Decisions, rejects: pa.Table
) -> None:
    """Remember the files that were read whole, and forget earlier ones where documents were replaced or removed.

    Every ingest reads all inputs files of its source, so a large number of them is joined into one.
    """
    source, former = params.source, transaction.view.manifest.files("inputs", params.source)
    unread = {row["path"] for row in rejects.to_pylist() if row["reason"] in WHOLE_FILE}
    files: list[IngestedFile] = inputs.ingested(unread) if params.limit is None else []
    if decisions.has_stale:
        transaction.drop_files(former)
        files += inputs.skipped
    elif files and len(former) >= _MAX_INPUTS_FILES:
        transaction.drop_files(former)
        files = list({(file.digest, file.mapping): file for file in [*inputs.known, *files]}.values())
    if files:
        path = path_of("inputs", name=source, task=transaction.run.id)
        transaction.publish("inputs", path, partial(write_table, table=inputs_table(files)), name=source)
    mirror = mirror_identity(inputs) if params.mirror else None
    transaction.set_entry(source, SourceEntry(transaction.run.id, mirror, reading_options(params)))
