"""The rows that an index lacks: from records alone, or in tasks that look at row bitmaps where parts or deletions decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrodb.engine.groups import groups_of
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import (
    MissingRows,
    coverage_of,
    missing_in,
    parts_of,
    rows_follow_from_records,
    unindexed_files,
)
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.planning_tasks import run_planning_tasks
from retrodb.store.storage import Storage
from retrodb.view.view import View

_TASK_CHUNKS = 1 << 24  # whose bitmaps a task reads: about a second
_MIN_FILE_CHUNKS = 1 << 15  # what a file counts at least, so that a task reads at most 512 files


@dataclass(frozen=True)
class MissingPayload:
    """Look at the rows of some files of vectors."""

    snapshot: PlannedSnapshot
    space: str
    files: tuple[FileRecord, ...]
    is_new: bool  # the index is built again: the parts of the snapshot do not count


@dataclass(frozen=True)
class MissingOfFiles:
    """What is missing of some files, in their order."""

    files: tuple[MissingRows, ...]


MISSING = TaskKind[MissingPayload, MissingOfFiles]("index-missing", 1, MissingOfFiles)


def find_missing_rows(context: Context, view: View, space: str, *, is_new: bool) -> tuple[MissingRows, ...]:
    """`missing_rows` of a space, in the order of its files."""
    parts = coverage_of(view, [] if is_new else parts_of(view, space))
    files = view.manifest.files("vectors", space) if is_new else unindexed_files(view, space)
    to_look_at = [file for file in files if not rows_follow_from_records(view, parts, file)]
    found = {missing.vectors.path: missing for missing in _look_at(context, view, space, to_look_at, is_new=is_new)}
    for file in files:
        if rows_follow_from_records(view, parts, file) and (missing := missing_in(view, parts, file)):
            found[file.path] = missing
    return tuple(found[file.path] for file in files if file.path in found)


def _look_at(
    context: Context, view: View, space: str, files: Sequence[FileRecord], *, is_new: bool
) -> list[MissingRows]:
    tasks = [
        MISSING.task(MissingPayload(PlannedSnapshot.of(view), space, group, is_new), weight=sum(map(_weight, group)))
        for group in groups_of(files, _weight, _TASK_CHUNKS)
    ]
    results = run_planning_tasks(context, "index-missing", tasks, run_missing, unit="chunks")
    return [missing for result in results for missing in result.files]


def _weight(file: FileRecord) -> int:
    return max(file.num_chunks, _MIN_FILE_CHUNKS)


def run_missing(storage: Storage, task: Task[MissingPayload, MissingOfFiles], clock: str) -> TaskRecord[MissingOfFiles]:
    """Find what is missing of some files of vectors."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    parts = coverage_of(view, [] if payload.is_new else parts_of(view, payload.space))
    found = (missing_in(view, parts, file) for file in payload.files)
    return TaskRecord(task.id, result=MissingOfFiles(tuple(missing for missing in found if missing)))
