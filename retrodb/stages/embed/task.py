"""The task of stage embed: pending rows of one file of chunks get their vectors, or their codes in an index part.

The vector of a row comes from a file that has it (an equal text was embedded before) or from a window that the encoder just
finished. Vectors are gathered when the output is written, so only one block of them is in memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrodb.config import EmbedParams
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.errors import MismatchError
from retrodb.format.arrays import Float16Array, Int64Array, growing_array
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.embed.pending import PendingRows, rows_of
from retrodb.stages.embed.reuse_tasks import ReusableVectors, read_origins
from retrodb.stages.embed.space_encoder import EncoderHardware, load_encoder, on_own_gpu
from retrodb.stages.embed.windows import EncodedWindows, TextFile, encode_windows, forget_windows, windows_folder
from retrodb.stages.index.codebook_file import stored_codebook
from retrodb.stages.index.publish_part import publish_part
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verify import VerifiedFiles
from retrodb.view.view import SELF

STAGE_VERSION = 3
_BLOCK_ROWS = 16_384  # vectors that are gathered at once: 16,384 * 384 dimensions * 2 bytes (float16) = 13 MB


@dataclass(frozen=True)
class EmbedPayload:
    """The pending rows of one file of chunks, and where their vectors come from."""

    run: str  # id of the run, whose folder has the windows
    space: str
    fingerprint: str  # of the space's encoder
    codebook: str | None  # path; None keeps the vectors themselves
    pending: PendingRows
    window_rows: int  # rows per window
    part: int  # number of these rows among all pending ones
    reusable: ReusableVectors | None  # None where no vector can be reused


KIND = TaskKind[EmbedPayload, NoResult]("embed", STAGE_VERSION, NoResult)


@dataclass
class EncodingTotals:
    """What the encoder computed in this process, without windows of earlier attempts."""

    num_rows: int = 0
    num_tokens: int = 0
    num_flops: float = 0.0
    elapsed_s: float = 0.0

    def add(self, windows: EncodedWindows, elapsed_s: float) -> None:
        """Add the windows of a task that were computed now."""
        self.num_rows += windows.num_computed_rows
        self.num_tokens += windows.num_computed_tokens
        self.num_flops += windows.num_flops
        self.elapsed_s += elapsed_s


def run_embed_task(
    storage: Storage,
    task: Task[EmbedPayload, NoResult],
    clock: str,
    *,
    snapshot: PlannedSnapshot,
    params: EmbedParams,
    hardware: EncoderHardware,
    totals: EncodingTotals,
) -> TaskRecord[NoResult]:
    """Embed the pending rows of one file of chunks.

    Args:
        snapshot: as in `rows_of`.

    Raises:
        MismatchError: when the encoder of this process is not the space's.
        InputError: for a vector with NaN or infinity; names the chunk.
        MissingFileError, DamagedFileError: when a file of chunks or hashes is not what its record says.
    """
    del clock  # no time enters the vectors
    payload, pending = task.payload, task.payload.pending
    encoder = load_encoder(params, on_own_gpu(hardware, current_process().name))
    if encoder.identity.fingerprint() != payload.fingerprint:
        raise MismatchError("the encoder of this worker is not that of the space", where=f"space '{payload.space}'")
    rows, verified = rows_of(storage, snapshot, payload.space, pending), VerifiedFiles(storage)
    positions = verified.rows(pending.chunks).rank(rows.present)  # in the files of chunks and hashes
    reused, origins = read_origins(storage, payload.reusable, payload.part)
    fresh = np.delete(np.arange(len(rows)), origins[:, 0])  # rows whose vectors are computed
    verified.open(pending.chunks)
    hashes = np.ascontiguousarray(verified.array(pending.hashes)[positions[fresh]]).view("S16")
    first, ordinal = _distinct(hashes)
    computed = fresh[first]  # one row of each distinct text
    texts = TextFile(pending.chunks.path, positions[computed], pending.chunks.first_chunk + rows.present[computed])
    folder = windows_folder(payload.run, task.id)
    start = time.perf_counter()
    windows = encode_windows(storage, folder, encoder, texts, payload.window_rows)
    totals.add(windows, time.perf_counter() - start)
    arrays: list[Float16Array | VerifiedArray] = [*reused, *windows.arrays]
    vectors = GatheredVectors(arrays, len(rows), encoder.identity.dimension)
    vectors.assign(origins[:, 0], origins[:, 1], origins[:, 2])
    vectors.assign(fresh, len(reused) + ordinal // payload.window_rows, ordinal % payload.window_rows)
    file = _publish(storage, task.id, payload, rows, vectors)
    forget_windows(storage, folder)
    counts = {
        "chunks" if pending.query_set == SELF else "query_rows": len(rows),
        "reused": len(origins),
        "repeated": len(fresh) - len(first),
        "tokens": windows.num_tokens,
        "truncated": windows.num_truncated,
    }
    return TaskRecord(task.id, file, counts=counts)


class GatheredVectors:
    """Vectors (N, D) float16 of the rows of a task, which lie in several arrays. A block is gathered when it is read."""

    def __init__(self, arrays: Sequence[Float16Array | VerifiedArray], num_rows: int, dimension: int) -> None:
        self.arrays, self.shape = arrays, (num_rows, dimension)
        self._array_N = np.zeros(num_rows, dtype=np.int32)
        self._position_N = np.zeros(num_rows, dtype=np.int64)

    def assign(self, rows: Int64Array, arrays: Int64Array, positions: Int64Array) -> None:
        """Set where the vectors of rows are: the index of the array, and the position in it."""
        self._array_N[rows], self._position_N[rows] = arrays, positions

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice[int, int, None] | Int64Array) -> Float16Array:
        array_B, position_B = self._array_N[rows], self._position_N[rows]
        block = np.empty((len(array_B), self.shape[1]), dtype=np.float16)
        for index in np.unique(array_B):
            in_array = np.flatnonzero(array_B == index)
            block[in_array] = self.arrays[index][position_B[in_array]]
        return block


def _distinct(hashes: NDArray[np.bytes_]) -> tuple[Int64Array, Int64Array]:
    """The first position of every distinct hash, ascending, and for every hash the number of its own among these."""
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    in_order = np.argsort(first, kind="stable")
    number = np.empty(len(first), dtype=np.int64)
    number[in_order] = np.arange(len(first))
    return first[in_order], number[which]


def _publish(
    storage: Storage, task: str, payload: EmbedPayload, rows: RowSet, vectors: GatheredVectors
) -> tuple[FileRecord, ...]:
    space, query_set, first = payload.space, payload.pending.query_set, payload.pending.chunks.first_chunk
    if payload.codebook and query_set == SELF:
        codebook = stored_codebook(storage, payload.codebook)
        return publish_part(storage, space, task, vectors, codebook, first, rows)
    if query_set == SELF:
        kind, name, path = "vectors", space, path_of("vectors", name=space, task=task)
    else:
        kind, name = "queries", query_set
        path = path_of("queries", name=query_set, task=task, file=f"vectors.{space}.npy")
    write = partial(_write, vectors=vectors)
    return (publish(storage, kind, path, write, name=name, first_chunk=first, rows=rows),)


def _write(local: Path, vectors: GatheredVectors) -> None:
    with growing_array(local, np.dtype(np.float16), (vectors.shape[1],)) as append:
        for start in range(0, len(vectors), _BLOCK_ROWS):
            append(vectors[start : start + _BLOCK_ROWS])
