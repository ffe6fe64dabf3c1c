"""The task of stage index: some vectors of one file become an index part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from retrodb.ann.codebook import Codebook, load_codebook
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array, map_array
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.index.publish_part import publish_part
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import Storage
from retrodb.view.view import View

STAGE_VERSION = 2


@dataclass(frozen=True)
class IndexPayload:
    """Vectors of one file, and the codebook that they are indexed under."""

    space: str
    codebook: str  # digest
    vectors: str  # path of the file of vectors
    first_chunk: int
    stored: RowSet  # rows that the file holds
    rows: RowSet  # rows to index


KIND = TaskKind[IndexPayload, NoResult]("index", STAGE_VERSION, NoResult)


def index_task(
    view: View, space: str, codebook: str, vectors: FileRecord, rows: RowSet
) -> Task[IndexPayload, NoResult]:
    """The task for some rows of a file of vectors, which is verified here."""
    view.files.open(vectors)
    payload = IndexPayload(space, codebook, vectors.path, vectors.first_chunk, vectors.row_set, rows)
    return KIND.task(payload, [vectors.digest.sha256.hex()], len(rows))


def run_index_task(
    storage: Storage, task: Task[IndexPayload, NoResult], clock: str, *, threads: int = 1
) -> TaskRecord[NoResult]:
    """Build the part of some rows of one file of vectors. The number of threads does not change its bytes."""
    del clock
    payload, rows = task.payload, task.payload.rows
    codebook = _load_codebook(storage.url, path_of("codebooks", name=payload.space, digest=payload.codebook))
    vectors = map_array(storage.local(payload.vectors))
    selected = vectors if rows == payload.stored else _SelectedRows(vectors, payload.stored.rank(rows.present))
    files = publish_part(
        storage, payload.space, task.id, selected, codebook, payload.first_chunk, rows, threads=threads
    )
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
