"""The tasks that find vectors of equal texts: runs of rows sorted by the hash of their text, and the join of these runs.

Legend: N new rows, M old rows, H new rows whose vector exists. A run is an array of `RUN_DTYPE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array, UInt32Array, save_array
from retrodb.format.document_keys import IdArray
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.embed.pending import PendingRows, rows_of
from retrodb.stages.file_list import read_file_list
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage

STAGE_VERSION = 4
RUN_DTYPE = np.dtype([("hash", "S16"), ("file", "<i8"), ("row", "<i8")])
"""A row of a run: the hash of its text, the number of its part of the new rows or file of vectors, and its row there."""

_FILTER_ROWS = 1 << 26  # more new rows would set most bits of a filter: then all old rows are joined
_FILTER_BITS = range(16, 27)  # of a table: the two of a filter have at most 128 MiB
_FILTER_CELLS = 8  # of a table, for each new row: one of 64 other hashes passes both tables


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors that can be reused."""

    vectors: FileRecord
    ids: FileRecord | None = None  # the chunks of its rows, (n,) int64 ascending; None: the rows of its record


@dataclass(frozen=True)
class ReusableVectors:
    """Where the vectors are that new rows can reuse: two lists of files."""

    files: FileRecord  # files of vectors by number
    matches: FileRecord  # files, each (H, 4): part of the new rows, row, number of a file of vectors, position in it


@dataclass(frozen=True)
class NewRunPayload:
    """Sort pending rows."""

    run: str  # id of the run that stores the sorted run
    space: str
    parts: tuple[PendingRows, ...]
    first_part: int  # number of the first one


@dataclass(frozen=True)
class FilterPayload:
    """Collect bits of the hashes of the pending rows."""

    run: str
    new_runs: FileRecord  # list of files
    num_rows: int  # of all these runs


@dataclass(frozen=True)
class OldRunPayload:
    """Sort the rows of files of vectors."""

    run: str
    files: tuple[VectorFile, ...]
    first_file: int  # number of the first one
    hashes: tuple[FileRecord, ...]  # of the texts of all rows, by ascending first chunk
    filter: FileRecord | None  # tables of the hashes that matter; None: all


@dataclass(frozen=True)
class ReuseJoinPayload:
    """Join one of `num_ranges` ranges of hashes."""

    run: str
    new_runs: FileRecord  # list of files
    old_runs: FileRecord  # list of files, in the order of the files of vectors
    number: int
    num_ranges: int


NEW_RUN = TaskKind[NewRunPayload, NoResult]("reuse-new", STAGE_VERSION, NoResult)
FILTER = TaskKind[FilterPayload, NoResult]("reuse-filter", STAGE_VERSION, NoResult)
OLD_RUN = TaskKind[OldRunPayload, NoResult]("reuse-old", STAGE_VERSION, NoResult)
JOIN = TaskKind[ReuseJoinPayload, NoResult]("reuse-join", STAGE_VERSION, NoResult)


def run_new_run(
    storage: Storage, task: Task[NewRunPayload, NoResult], clock: str, *, snapshot: PlannedSnapshot
) -> TaskRecord[NoResult]:
    """Sort some pending rows by the hashes of their texts.

    Args:
        snapshot: as in `rows_of`.
    """
    del clock
    verified, blocks = VerifiedFiles(storage), [np.empty(0, RUN_DTYPE)]
    for number, part in enumerate(task.payload.parts, task.payload.first_part):
        rows = rows_of(storage, snapshot, task.payload.space, part)
        positions = verified.rows(part.hashes).rank(rows.present)
        hashes = _as_bytes(verified.array(part.hashes)[positions])
        blocks.append(_run(hashes, number, np.arange(len(positions))))
    return _publish(storage, task.payload.run, task.id, _sorted(np.concatenate(blocks)))


def run_filter_tables(storage: Storage, task: Task[FilterPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Two tables, (2, 2^bits) uint8, of the first bits of a hash and of those from bit 32 on: 1 where a new hash has them.

    No file when nearly all would be 1.
    """
    del clock
    payload = task.payload
    if payload.num_rows > _FILTER_ROWS:
        return TaskRecord(task.id)
    num_bits = max((payload.num_rows * _FILTER_CELLS).bit_length(), _FILTER_BITS.start)
    is_wanted = np.zeros((2, 1 << min(num_bits, _FILTER_BITS.stop - 1)), dtype=np.uint8)
    for record in read_file_list(storage, payload.new_runs):
        hashes = np.ascontiguousarray(_open(storage, record)["hash"])
        for word, table in enumerate(is_wanted):
            table[_cells(hashes, word, table)] = 1
    return _publish(storage, payload.run, task.id, is_wanted)


def run_old_run(storage: Storage, task: Task[OldRunPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Sort those rows of some files of vectors that pass the filter; of equal texts the first row stays.

    Few rows pass where little is new. Only of these the row is looked up in the files of vectors; of a sample, whose rows are
    few among many texts, the texts are looked up.
    """
    del clock
    payload, verified = task.payload, VerifiedFiles(storage)
    is_wanted = None if payload.filter is None else _open(storage, payload.filter)
    texts, blocks = Coverage(payload.hashes, verified), [np.empty(0, RUN_DTYPE)]
    for number, file in enumerate(payload.files, payload.first_file):
        if file.ids is not None:
            for hit in texts.lookup(_open(storage, file.ids)):
                hashes = _as_bytes(verified.array(hit.record)[hit.positions])
                passing = _passing(hashes, is_wanted)
                blocks.append(_run(hashes[passing], number, hit.where[passing]))
            continue
        for record in texts.overlapping(*file.vectors.span):
            hashes = _as_bytes(_open(storage, record))
            if len(passing := _passing(hashes, is_wanted)):
                ids = record.first_chunk + verified.rows(record).select(passing)
                rows = verified.rows(file.vectors).rank(ids - file.vectors.first_chunk)
                has_vector = rows >= 0
                blocks.append(_run(hashes[passing[has_vector]], number, rows[has_vector]))
    run = _first_of_each_hash(_sorted(np.concatenate(blocks)))
    return _publish(storage, payload.run, task.id, run, {"rows": len(run)})


def _passing(hashes: NDArray[np.bytes_], is_wanted: AnyArray | None) -> Int64Array:
    """The positions of the hashes (n,) that pass both tables of a filter, ascending; without a filter all."""
    if is_wanted is None:
        return np.arange(len(hashes))
    first, second = is_wanted
    passing = np.flatnonzero(first.take(_cells(hashes, 0, first)))
    return passing[np.flatnonzero(second.take(_cells(hashes[passing], 1, second)))]


def run_reuse_join(storage: Storage, task: Task[ReuseJoinPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """For the new rows of a range of hashes the place of an existing vector, (H, 4) int64, by part and row."""
    del clock
    payload = task.payload
    new, old = (
        np.concatenate(
            [
                np.empty(0, RUN_DTYPE),
                *(_range_of(_open(storage, record), payload) for record in read_file_list(storage, runs)),
            ]
        )
        for runs in (payload.new_runs, payload.old_runs)
    )
    old = _first_of_each_hash(_sorted(old))
    position = np.searchsorted(old["hash"], new["hash"])
    is_found = np.zeros(len(new), dtype=bool)
    inside = position < len(old)
    is_found[inside] = old["hash"][position[inside]] == new["hash"][inside]
    hits, origin = new[is_found], old[position[is_found]]
    matches = np.stack([hits["file"], hits["row"], origin["file"], origin["row"]], axis=1)
    return _publish(storage, payload.run, task.id, matches[np.lexsort((hits["row"], hits["file"]))])


def read_origins(
    storage: Storage, reusable: ReusableVectors | None, part: int
) -> tuple[list[VerifiedArray], Int64Array]:
    """The arrays with vectors for one part of the new rows, and (H, 3) int64: row, index of the array, position in it."""
    if reusable is None:
        return [], np.empty((0, 3), np.int64)
    found = [np.empty((0, 3), np.int64)]
    for record in read_file_list(storage, reusable.matches):
        matches = _open(storage, record)
        low, high = np.searchsorted(matches[:, 0], [part, part + 1])
        found.append(matches[low:high, 1:])
    origins = np.concatenate(found)
    origins = origins[np.lexsort((origins[:, 0], origins[:, 1]))]
    used, origins[:, 1] = np.unique(origins[:, 1], return_inverse=True)
    files, verified = read_file_list(storage, reusable.files) if len(used) else (), VerifiedFiles(storage)
    return [verified.array(files[number]) for number in used], origins


def _run(hashes: NDArray[np.bytes_], number: int, rows: Int64Array) -> IdArray:
    run = np.empty(len(hashes), dtype=RUN_DTYPE)
    run["hash"], run["file"], run["row"] = hashes, number, rows
    return run


def _sorted(run: IdArray) -> IdArray:
    """The rows by hash, rows of equal texts in the order given."""
    return run[np.argsort(run["hash"], kind="stable")]


def _first_of_each_hash(run: IdArray) -> IdArray:
    is_first = np.ones(len(run), dtype=bool)
    is_first[1:] = run["hash"][1:] != run["hash"][:-1]
    return run[is_first]


def _range_of(run: IdArray, payload: ReuseJoinPayload) -> IdArray:
    """The rows of one range of hashes of a sorted run."""
    edges = [(number << 64) // payload.num_ranges for number in (payload.number, payload.number + 1)]
    low, high = (
        len(run) if edge == 1 << 64 else int(np.searchsorted(run["hash"], np.bytes_(edge.to_bytes(8, "big"))))
        for edge in edges
    )
    return run[low:high]


def _cells(hashes: NDArray[np.bytes_], word: int, table: AnyArray) -> UInt32Array:
    """The cell of each hash (n,) S16, contiguous, in a table (2^bits,): the first bits of one of its words of 32 bits."""
    words: UInt32Array = hashes.view(">u4")[word::4].astype(np.uint32)
    return words >> np.uint32(33 - len(table).bit_length())


def _as_bytes(hashes: AnyArray) -> NDArray[np.bytes_]:
    """(n,) S16 of entries of a `hashes` file."""
    return np.ascontiguousarray(hashes).view("S16")


def _open(storage: Storage, record: FileRecord) -> AnyArray:
    return VerifiedFiles(storage).whole_array(record)


def _publish(
    storage: Storage, run: str, task: str, array: AnyArray, counts: dict[str, int] | None = None
) -> TaskRecord[NoResult]:
    path = path_of("runs", run=run, file=f"reuse/{task}.npy")
    return TaskRecord(task, (publish(storage, "runs", path, partial(save_array, array=array)),), counts=counts or {})
