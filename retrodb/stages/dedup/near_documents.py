"""What a search for near-duplicates knows of documents, and the documents of equal content: sorted runs, made in tasks.

Shapes: `M` documents, `E` pairs of documents of equal content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retrodb.dedup.lsh import prefix_rows
from retrodb.dedup.union_find import CONTENT_DTYPE, equal_content_pairs
from retrodb.engine.run import Run, add_counts
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.parquet import read_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.dedup.near_files import map_near, map_numbered, publish_array, records_of, shard_groups
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.storage import Storage
from retrodb.view.view import View

REASON = "near-duplicate"
STAGE_VERSION = 1
PREFIX_DOCUMENTS = 1 << 23  # whose contents one task compares: 200 MB
EQUAL_BYTES = 64  # of a document whose content is compared: hash and id, and as much again to sort them

FACTS_DTYPE = np.dtype(
    [
        ("document", "<i8"),  # id of the first chunk
        ("num_chars", "<i8"),
        ("added_at", "<i8"),  # microseconds
        ("num_chunks", "<i4"),
        ("is_present", "<i4"),  # 1 if some chunk is live, or deleted as a near-duplicate only
    ]
)
_COLUMNS = ("first_row", "num_chunks", "num_chars", "added_at", "content_hash")


@dataclass(frozen=True)
class FactsPayload:
    """Read the documents of a group of shards."""

    run: str
    snapshot: PlannedSnapshot
    number: int  # of the group
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True)
class EqualPayload:
    """Find the documents of equal content whose hash begins with a prefix."""

    run: str
    num_groups: int
    prefix: int
    num_prefixes: int


FACTS = TaskKind[FactsPayload, NoResult]("near-facts", STAGE_VERSION, NoResult)
EQUAL = TaskKind[EqualPayload, NoResult]("near-equal", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class DescribedDocuments:
    """What is known when the documents of all shards were read."""

    num_groups: int  # files `facts/{number}.npy` and `contents/{number}.npy`
    num_prefixes: int  # files `equal/{number}.npy`
    num_present: int  # documents that no other reason deletes


def describe_documents(context: Context, view: View, run: Run) -> DescribedDocuments:
    """Read the documents of all shards, and find those of equal content."""
    groups, snapshot = shard_groups(view), PlannedSnapshot.of(view)
    tasks = [
        FACTS.task(FactsPayload(run.id, snapshot, number, *group), weight=group.num_chunks)
        for number, group in enumerate(groups)
    ]
    counts = add_counts(context.engine.run(run, tasks, run_facts, context.progress))
    num_documents = int(view.shards.num_documents.sum())
    num_prefixes = power_of_two(num_documents, PREFIX_DOCUMENTS)
    equal = [EQUAL.task(EqualPayload(run.id, len(groups), p, num_prefixes)) for p in range(num_prefixes)]
    extra_bytes = EQUAL_BYTES * (num_documents // num_prefixes)
    context.engine.run(run, equal, run_equal, context.progress, extra_bytes=extra_bytes)
    return DescribedDocuments(len(groups), num_prefixes, counts.get("present", 0))


def power_of_two(amount: int, at_most: int) -> int:
    """The least power of two parts of which each has at most so much of an amount."""
    return 1 << max(0, (max(1, -(-amount // at_most)) - 1).bit_length())


def run_facts(storage: Storage, task: Task[FactsPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The facts of the documents of a group by ascending id, and their contents by ascending hash."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    facts, contents = [np.empty(0, FACTS_DTYPE)], [np.empty(0, CONTENT_DTYPE)]
    for record in records_of(view, ChunkRange(payload.first_chunk, payload.num_chunks)):
        table = read_table(view.files.open(record), _COLUMNS)
        facts.append(_facts(view, record, table))
        contents.append(_contents(facts[-1]["document"], table))
    all_facts, all_contents = np.concatenate(facts), np.concatenate(contents)
    order = np.lexsort((all_contents["document"], all_contents["lo"], all_contents["hi"]))
    files = (
        publish_array(storage, payload.run, f"facts/{payload.number}", all_facts),
        publish_array(storage, payload.run, f"contents/{payload.number}", all_contents[order]),
    )
    return TaskRecord(task.id, files, counts={"present": int(all_facts["is_present"].sum())})


def _facts(view: View, record: FileRecord, table: pa.Table) -> AnyArray:
    """(M,) FACTS_DTYPE: the documents of a shard; those that only REASON deletes count as present."""
    first_row, num_chunks = (table.column(name).to_numpy().astype(np.int64) for name in ("first_row", "num_chunks"))
    is_deleted = ~view.chunks.present_mask(*record.span)
    for reason, mask in view.chunks.tombstones.deleted_by_reason(*record.span).items():
        is_deleted |= mask & (reason != REASON)
    num_live = np.concatenate(([0], np.cumsum(~is_deleted)))
    facts = np.empty(len(first_row), FACTS_DTYPE)
    facts["document"], facts["num_chunks"] = first_row + record.first_chunk, num_chunks
    facts["num_chars"] = table.column("num_chars").to_numpy()
    facts["added_at"] = table.column("added_at").cast(pa.int64()).to_numpy()
    facts["is_present"] = num_live[first_row + num_chunks] > num_live[first_row]
    return facts


def _contents(documents: Int64Array, table: pa.Table) -> AnyArray:
    """(M,) CONTENT_DTYPE of the documents of a shard, in their order."""
    contents = np.empty(len(documents), CONTENT_DTYPE)
    if len(documents):
        column = table.column("content_hash").combine_chunks()
        halves = np.frombuffer(column.buffers()[1], ">u8")[2 * column.offset :][: 2 * len(column)]
        contents["hi"], contents["lo"] = halves[::2], halves[1::2]
    contents["document"] = documents
    return contents


def run_equal(storage: Storage, task: Task[EqualPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The pairs (E, 2) of documents of equal content of one prefix."""
    del clock
    payload = task.payload
    contents = [np.empty(0, CONTENT_DTYPE)]
    for of_group in map_numbered(storage, payload.run, "contents", payload.num_groups):
        contents.append(np.array(of_group[prefix_rows(of_group["hi"], payload.prefix, payload.num_prefixes)]))
    pairs = equal_content_pairs(np.concatenate(contents))
    return TaskRecord(task.id, (publish_array(storage, payload.run, f"equal/{payload.prefix}", pairs),))


def read_facts(storage: Storage, run: str, groups: Sequence[ChunkRange], ids: Int64Array) -> AnyArray:
    """The facts (FACTS_DTYPE) of those of some documents, by ascending id, that exist."""
    found = [np.empty(0, FACTS_DTYPE)]
    for number, group in enumerate(groups):
        low, high = np.searchsorted(ids, [group.first_chunk, group.end])
        if low < high:
            facts = map_near(storage, run, f"facts/{number}")
            row = np.minimum(np.searchsorted(facts["document"], ids[low:high]), len(facts) - 1)
            found.append(facts[row[facts["document"][row] == ids[low:high]]] if len(facts) else facts)
    return np.concatenate(found)
