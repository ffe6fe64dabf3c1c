"""The task of stage index: some vectors of one file become an index part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from retrodb.ann.codebook import Codebook, load_codebook
from retrodb.ann.part import BLOCK_ROWS
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array, map_array
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.index.publish_part import publish_part
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles

STAGE_VERSION = 2


@dataclass(frozen=True)
class IndexPayload:
    """Vectors of one file, and the codebook that they are indexed under."""

    space: str
    codebook: str  # digest
    vectors: FileRecord
    rows: RowSet  # rows to index


KIND = TaskKind[IndexPayload, NoResult]("index", STAGE_VERSION, NoResult)


def index_task(space: str, codebook: str, vectors: FileRecord, rows: RowSet) -> Task[IndexPayload, NoResult]:
    """The task for some rows of a file of vectors."""
    return KIND.task(IndexPayload(space, codebook, vectors, rows), (), len(rows))


def part_bytes(dim: int, tasks: Sequence[Task[IndexPayload, NoResult]]) -> int:
    """What a task holds that depends on the dimension: codes, twice while a part is written, and four blocks of float32."""
    return dim * (2 * max((task.weight for task in tasks), default=0) + 4 * 4 * BLOCK_ROWS)


def run_index_task(
    storage: Storage, task: Task[IndexPayload, NoResult], clock: str, *, threads: int = 1
) -> TaskRecord[NoResult]:
    """Build the part of some rows of one file of vectors. The number of threads does not change its bytes.

    Raises:
        MissingFileError, DamagedFileError: when the file of vectors is not what its record says.
    """
    del clock
    payload, rows = task.payload, task.payload.rows
    codebook = _load_codebook(storage.url, path_of("codebooks", name=payload.space, digest=payload.codebook))
    record, stored = payload.vectors, VerifiedFiles(storage).rows(payload.vectors)
    vectors = map_array(VerifiedFiles(storage).open(record))
    selected = vectors if rows == stored else _SelectedRows(vectors, stored.rank(rows.present))
    files = publish_part(storage, payload.space, task.id, selected, codebook, record.first_chunk, rows, threads=threads)
    return TaskRecord(task.id, files, counts={"vectors": len(rows)})


class _SelectedRows:
    """Some rows of a mapped array, read block by block."""

    def __init__(self, array: AnyArray, positions: Int64Array) -> None:
        self._array, self._positions = array, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, rows: slice[int, int, None] | Int64Array) -> AnyArray:
        block: AnyArray = self._array[self._positions[rows]]
        return block


@lru_cache(maxsize=2)
def _load_codebook(url: str, path: str) -> Codebook:
    return load_codebook(open_storage(url).read(path))
