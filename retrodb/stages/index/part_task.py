"""The task of stage index: some vectors of one file become an index part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from retrodb.ann.part import BLOCK_ROWS
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.index.codebook_file import codebook_bytes, codebook_of_tasks
from retrodb.stages.index.live_parts import MissingRows, coverage_of, parts_of, rows_to_index
from retrodb.stages.index.publish_part import publish_part
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.row_files import rows_digest
from retrodb.store.storage import Storage
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

STAGE_VERSION = 5


@dataclass(frozen=True)
class IndexPayload:
    """Vectors of one file, and the codebook that they are indexed under."""

    space: str
    codebook: str  # digest
    vectors: FileRecord
    rows: str | None  # digest of the bitmap of the rows to index; None: every row of the file's range
    is_new: bool  # the index is built again: the parts of the snapshot do not count


KIND = TaskKind[IndexPayload, NoResult]("index", STAGE_VERSION, NoResult)


def index_task(space: str, codebook: str, missing: MissingRows, *, is_new: bool) -> Task[IndexPayload, NoResult]:
    """The task for some rows of a file of vectors."""
    return KIND.task(IndexPayload(space, codebook, missing.vectors, missing.rows, is_new), (), missing.num_rows)


def part_bytes(dim: int, num_lists: int) -> int:
    """What a task holds that depends on the dimension: four blocks of float32, and the codebook."""
    return dim * 4 * 4 * BLOCK_ROWS + codebook_bytes(num_lists, dim)


def run_index_task(
    storage: Storage, task: Task[IndexPayload, NoResult], clock: str, *, snapshot: PlannedSnapshot, threads: int = 1
) -> TaskRecord[NoResult]:
    """Build the part of some rows of one file of vectors. The number of threads does not change its bytes.

    Args:
        snapshot: that was planned on. It is not in the payload, where the digest says which rows these are: after another
            commit the same task continues.

    Raises:
        MissingFileError, DamagedFileError: when the file of vectors is not what its record says.
    """
    del clock
    payload, record, files = task.payload, task.payload.vectors, VerifiedFiles(storage)
    codebook = codebook_of_tasks(storage.url, path_of("codebooks", name=payload.space, digest=payload.codebook))
    rows = planned_rows(storage, files, snapshot, payload.space, record, payload.rows, is_new=payload.is_new)
    vectors, stored = files.array(record), files.rows(record)
    selected = vectors if rows == stored else _SelectedRows(vectors, stored.rank(rows.present))
    built = publish_part(storage, payload.space, task.id, selected, codebook, record.first_chunk, rows, threads=threads)
    return TaskRecord(task.id, built, counts={"vectors": len(rows)})


def planned_rows(
    storage: Storage,
    files: VerifiedFiles,
    snapshot: PlannedSnapshot,
    space: str,
    vectors: FileRecord,
    digest: str | None,
    *,
    is_new: bool,
) -> RowSet:
    """The rows of a file of vectors that the planner counted, found again: of whole files the record says them."""
    if digest == vectors.rows:
        return files.rows(vectors)
    view = planned_view(storage, snapshot)
    rows = rows_to_index(view, coverage_of(view, []) if is_new else _old_parts(view, space), vectors)
    assert rows_digest(rows) == digest, "the planner found these rows in the same way"
    return rows


@lru_cache(maxsize=1)
def _old_parts(view: View, space: str) -> Coverage:
    """The parts of a planned snapshot, listed once per process."""
    return coverage_of(view, parts_of(view, space))


class _SelectedRows:
    """Some rows of a mapped array, read block by block."""

    def __init__(self, array: VerifiedArray, positions: Int64Array) -> None:
        self._array, self._positions = array, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, rows: slice[int, int, None] | Int64Array) -> AnyArray:
        return self._array[self._positions[rows]]
