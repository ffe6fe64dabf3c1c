"""The task of stage neighbours: the neighbours of one range of query rows."""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.config import NeighboursParams
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.records import ChunkRange
from retrodb.stages.neighbours.block_join import JoinHardware
from retrodb.stages.neighbours.table_inputs import database_side, nearest_chunks
from retrodb.stages.neighbours.table_rows import publish_rows, query_ids
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.storage import Storage

STAGE_VERSION = 1
_ONE_THREAD = JoinHardware()


@dataclass(frozen=True)
class NeighboursPayload:
    """A range of rows of a new table."""

    snapshot: PlannedSnapshot
    table: str
    queries: str
    space: str
    nprobe: int  # lists to read for each row; 0 compares with every vector
    params: NeighboursParams
    span: ChunkRange


KIND = TaskKind[NeighboursPayload, NoResult]("neighbours", STAGE_VERSION, NoResult)


def run_neighbours_task(
    storage: Storage, task: Task[NeighboursPayload, NoResult], clock: str, *, hardware: JoinHardware = _ONE_THREAD
) -> TaskRecord[NoResult]:
    """Compute the neighbours of one range of query rows. The hardware changes no byte of them."""
    del clock
    payload, params = task.payload, task.payload.params
    view = planned_view(storage, payload.snapshot)
    rows = query_ids(view, payload.queries, payload.space, payload.span)
    if not len(rows):
        return TaskRecord(task.id, counts={"rows": 0, "short": 0})
    parts = database_side(view, payload.space, params)
    ids, distances = nearest_chunks(view, payload.queries, payload.space, payload.nprobe, params, parts, rows, hardware)
    record = publish_rows(storage, payload.table, task.id, payload.span, rows, ids, distances)
    num_short = int((ids[:, params.k - 1] < 0).sum())
    return TaskRecord(task.id, (record,), counts={"rows": len(rows), "short": num_short})
