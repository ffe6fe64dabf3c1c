"""The tasks of a proof: each searches some files for the traces of a run, and records what it searched and found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.arrays import AnyArray, Int64Array, UInt64Array, growing_array
from retrodb.format.kinds import path_of
from retrodb.maintain.purge.scanner import TraceScanner
from retrodb.maintain.purge.traces import KINDS, Traces, stored_traces
from retrodb.store.digest import root_of_file
from retrodb.store.publish import publish
from retrodb.store.storage import FileStat, Storage
from retrodb.store.temporary import TEMPORARY

STAGE_VERSION = (
    3  # raised when the same bytes are searched in another way: then nothing that was searched before counts
)
HIT_DTYPE = np.dtype([("location", "<i4"), ("kind", "u1"), ("value", "<u8"), ("row", "<i8")])
"""One trace in a file: its location (a number of `SearchResult.locations`), its kind (a number of `KINDS`), value and row."""

_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system: two changes at the same tick leave equal stamps
_CHANGING = ""  # stamp of a file that changed so recently that a further change might not show


@dataclass(frozen=True)
class SearchPayload:
    """Files to search."""

    run: str  # id of the run, which stores the traces and the hits
    traces: str  # name of all its traces
    paths: tuple[str, ...]
    number: int  # of this search among those of the run, so that it never takes the record of an earlier one


@dataclass(frozen=True)
class SearchedFile:
    """One file, and where its hits are among those of its task."""

    path: str
    stamp: str  # of the file when it was read, see `FileStat.stamp`
    xxh3: str  # of the bytes that were searched, as the manifest has it, hexadecimal
    num_rows: int  # of a table or an array; of search codes, the slots of their blocks
    num_compared: dict[str, int]  # values of each kind that were compared with the traces
    first_hit: int
    num_hits: int
    problem: str  # why it could not be searched to its end; "" when it was


@dataclass(frozen=True)
class SearchResult:
    """What a task searched."""

    traces: str  # as in the payload
    version: int  # STAGE_VERSION
    number: int  # of the search, as in the payload: of two searches the newer one has the larger number
    files: tuple[SearchedFile, ...]  # without those that another command deleted
    locations: tuple[str, ...]  # in files


KIND = TaskKind[SearchPayload, SearchResult]("purge-search", STAGE_VERSION, SearchResult)


def run_search(storage: Storage, task: Task[SearchPayload, SearchResult], clock: str) -> TaskRecord[SearchResult]:
    """Search some files. The hits, (n,) HIT_DTYPE, are a file of the run."""
    del clock
    payload, search = task.payload, _Search(storage, stored_traces(storage, task.payload.run))
    path = path_of("runs", run=payload.run, file=f"reports/{task.id}.npy")
    hits = publish(storage, "runs", path, partial(search.run, payload.paths))
    result = SearchResult(payload.traces, STAGE_VERSION, payload.number, tuple(search.files), tuple(search.locations))
    return TaskRecord(task.id, (hits,), result)


class _Search:
    """The search of one task."""

    def __init__(self, storage: Storage, traces: Traces) -> None:
        self._storage, self._traces = storage, traces
        self._num_hits = 0
        self.files: list[SearchedFile] = []
        self.locations: dict[str, int] = {}  # each with its number

    def run(self, paths: tuple[str, ...], out: Path) -> None:
        """Search the files, and write the hits."""
        with growing_array(out, HIT_DTYPE) as append:
            for path in paths:
                try:
                    self.files.append(self._search(path, append))
                except MissingFileError:  # another command deleted it
                    continue

    def _search(self, path: str, append: Callable[[AnyArray], None]) -> SearchedFile:
        def found(location: str, kind: str, values: UInt64Array, rows: Int64Array) -> None:
            hits = np.empty(len(values), HIT_DTYPE)
            hits["location"] = self.locations.setdefault(location, len(self.locations))
            hits["kind"], hits["value"], hits["row"] = KINDS.index(kind), values, rows
            append(hits)
            self._num_hits += len(hits)

        stamp, local = _settled_stamp(self._storage.stat(path)), self._storage.local(path)
        first_hit, problem = self._num_hits, ""
        scanner = TraceScanner(self._traces, found)
        if path.startswith(f"{TEMPORARY}/"):
            problem = "unfinished file"
        else:
            try:
                scanner.scan(path, local)
            except DamagedFileError:
                problem = "cannot be read"
        xxh3 = root_of_file(local).hex()
        if self._storage.stat(path).stamp != stamp:
            stamp = _CHANGING
        num_hits, num_compared = self._num_hits - first_hit, dict(scanner.num_compared)
        return SearchedFile(path, stamp, xxh3, scanner.num_rows, num_compared, first_hit, num_hits, problem)


def _settled_stamp(stat: FileStat) -> str:
    """The stamp of a file; _CHANGING when it changed so recently that a further change might leave the same stamp."""
    return stat.stamp if time.time_ns() - stat.changed_ns > _SETTLED_NS else _CHANGING
