"""The task of stage neighbours where all lists are one range: the neighbours of the query rows of some spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrodb.ann.list_rows import ListRows
from retrodb.ann.rerank import LivePart
from retrodb.ann.routing import Probes
from retrodb.ann.topk import TopK
from retrodb.config import NeighboursParams
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.neighbours.block_join import JoinHardware
from retrodb.stages.neighbours.filled_lists import codebook_of_rows
from retrodb.stages.neighbours.range_rows import ListRange, planned_rows_in_lists
from retrodb.stages.neighbours.table_inputs import database_side, nearest_chunks
from retrodb.stages.neighbours.table_rows import num_short, publish_rows, query_ids
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.storage import Storage

STAGE_VERSION = 4
_ONE_THREAD = JoinHardware()


@dataclass(frozen=True)
class NeighboursPayload:
    """Some spans of rows of a new table."""

    snapshot: PlannedSnapshot
    table: str
    queries: str
    space: str
    num_lists: int  # of the codebook
    probes: Probes  # lists that each row reads
    list_sizes: FileRecord | None  # of a restricted table, the chunks in each list
    params: NeighboursParams
    spans: tuple[ChunkRange, ...]


KIND = TaskKind[NeighboursPayload, NoResult]("neighbours", STAGE_VERSION, NoResult)


def run_neighbours_task(
    storage: Storage, task: Task[NeighboursPayload, NoResult], clock: str, *, hardware: JoinHardware = _ONE_THREAD
) -> TaskRecord[NoResult]:
    """Compute the neighbours of the query rows of some spans, a file for each that has rows. The hardware changes no byte."""
    del clock
    payload, params = task.payload, task.payload.params
    view = planned_view(storage, payload.snapshot)
    parts: Sequence[LivePart] | Sequence[ListRows]
    if payload.probes.nprobe == 0:
        parts = database_side(view, payload.space, params)
    else:
        lists = ListRange(0, payload.num_lists)
        parts = planned_rows_in_lists(storage, payload.snapshot, payload.space, params, lists)

    codebook = codebook_of_rows(view, payload.space, payload.list_sizes)

    def joined(rows: Int64Array) -> TopK:
        space, probes = payload.space, payload.probes
        return nearest_chunks(view, payload.queries, space, codebook, probes, params, parts, rows, hardware)

    files, counts = list[FileRecord](), {"rows": 0, "short": 0, "capped": 0}
    for number, span in enumerate(payload.spans):
        rows = query_ids(view, payload.queries, payload.space, span)
        if len(rows):
            ids, distances = joined(rows)
            files += publish_rows(storage, payload.table, f"{task.id}-{number}", span, rows, ids, distances)
            of_span = {"rows": len(rows)} | num_short((ids, distances), params.k)
            counts = {name: count + of_span[name] for name, count in counts.items()}
    return TaskRecord(task.id, tuple(files), counts=counts)
