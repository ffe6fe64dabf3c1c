"""Files of a whole input, written in partitions: the candidates (one record of each id), and what happens to each record.

What is in memory is one partition of the keys, whatever the size of the input.

Legend: R records of the input in reading order, C candidates. Entries are as in `format/document_keys.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np

from retrodb.engine.run import Run
from retrodb.format.arrays import Int64Array, array_header, growing_array, map_array
from retrodb.format.document_keys import ID_DTYPE, IdArray
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.memory import PROCESS_MEMORY
from retrodb.stages.ingest.read_inputs import Segment
from retrodb.stages.ingest.upsert import DUPLICATE, decide, first_of_each_id
from retrodb.store.publish import publish

_ENTRY_BYTES = 128  # memory to sort an entry: itself, its order, and copies
_SORT_FRACTION = 4  # of the memory of the process, one part of so many is for the sort
_LEAST_ENTRIES, _MOST_ENTRIES = 1 << 16, 1 << 24  # that are sorted at once
_MOST_PARTITIONS = 512  # files that are open at the same time
_BLOCK_RECORDS = 1 << 20  # of a new file of outcomes, written at once


def write_candidates(run: Run, segments: Sequence[Segment]) -> FileRecord:
    """A file (C,) of the first record of each id, sorted by key; `row` is the record's number 0 .. R-1."""
    count = _num_partitions(sum(segment.num_records for segment in segments))
    edges = np.array([(number << 64) // count for number in range(1, count)], dtype=np.uint64)
    paths = [path_of("runs", run=run.id, file=f"spool/partition-{number}.npy") for number in range(count)]
    with ExitStack() as stack:
        appends = [
            stack.enter_context(growing_array(stack.enter_context(run.storage.stage(path)), ID_DTYPE)) for path in paths
        ]
        for entries in _numbered(run, segments):
            partition = np.searchsorted(edges, entries["key_hi"], side="right")
            order = np.argsort(partition, kind="stable")
            bounds = np.searchsorted(partition[order], np.arange(count + 1))
            for append, (first, end) in zip(appends, pairwise(bounds.tolist()), strict=True):
                append(entries[order[first:end]])

    def write(local: Path) -> None:
        with growing_array(local, ID_DTYPE) as append:
            for path in paths:
                append(first_of_each_id(np.array(map_array(run.storage.local(path)))))

    candidates = publish(run.storage, "runs", path_of("runs", run=run.id, file="spool/candidates.npy"), write)
    for path in paths:
        run.storage.delete(path)
    return candidates


def _num_partitions(num_entries: int) -> int:
    """In how many partitions of the keys so many entries are sorted. The file does not depend on it."""
    at_once = PROCESS_MEMORY.limit_bytes // _SORT_FRACTION // _ENTRY_BYTES
    return min(num_entries // min(max(at_once, _LEAST_ENTRIES), _MOST_ENTRIES) + 1, _MOST_PARTITIONS)


def _numbered(run: Run, segments: Sequence[Segment]) -> Iterator[IdArray]:
    """The entries of all accepted records, one segment at a time, numbered in reading order."""
    first = 0
    for segment in segments:
        entries = np.array(map_array(run.storage.local(segment.keys.path)))
        entries["row"] = np.arange(first, first + len(entries))
        first += len(entries)
        yield entries


def write_outcomes(
    run: Run,
    num_records: int,
    candidates: IdArray,
    existing: Iterable[Int64Array],
    holdout: float,
    purged_keys: IdArray,
) -> tuple[FileRecord, tuple[int, ...]]:
    """A file (R,) of the codes of `upsert.OUTCOMES`, and the number of records with each. Arguments are those of `decide`."""
    counts: tuple[int, ...] = ()

    def write(local: Path) -> None:
        nonlocal counts
        with local.open("wb") as file:
            file.write(header := array_header(np.dtype(np.uint8), (num_records,)))
            for first in range(0, num_records, _BLOCK_RECORDS):
                file.write(bytes([DUPLICATE]) * min(_BLOCK_RECORDS, num_records - first))
        outcomes = np.empty(0, np.uint8)
        if num_records:
            outcomes = np.memmap(local, np.uint8, "r+", len(header), (num_records,))
        counts = decide(outcomes, candidates, existing, holdout, purged_keys)
        if isinstance(outcomes, np.memmap):
            outcomes.flush()

    file = publish(run.storage, "runs", path_of("runs", run=run.id, file="outcomes.npy"), write)
    return file, counts
