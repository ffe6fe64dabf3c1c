"""Candidate pairs of documents: the sorted bands of all shards are joined in parts, one task each.

A part is some bands, or the hashes of one band that begin with one prefix; a task reads these rows of every shard and no others.

Shapes: `E` pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.lsh import MAX_BUCKET, MAX_PAIRS, BandEntries, join_band, parse_bands, prefix_rows, unique_pairs
from retrodb.engine.run import Run, add_counts
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.dedup.near_documents import power_of_two
from retrodb.stages.dedup.near_files import BandsRun, FileList, publish_array, publish_list, read_list
from retrodb.store.storage import Storage
from retrodb.store.verified_array import FieldOfRows
from retrodb.store.verify import VerifiedFiles
from retrodb.view.view import View

STAGE_VERSION = 2
PART_ENTRIES = 1 << 19  # entries of several bands in a task
ENTRY_BYTES = 80  # of an entry: itself, three times as much to sort it, and its candidates
PREFIX_ENTRIES = 1 << 24  # entries of one band in a task: 256 MB, and about three times as much to sort them
_SAMPLES = 64  # of the candidates in a file


@dataclass(frozen=True)
class JoinPayload:
    """Find the candidates of one part of the bands."""

    run: str
    bands: str  # path of the list of bands
    first_band: int
    end_band: int
    prefix: int
    num_prefixes: int


@dataclass(frozen=True)
class CandidateSample:
    """Some of the candidates of a task, evenly spaced in each file: they show how many begin with which document."""

    firsts: tuple[int, ...]  # first documents of the pairs
    weights: tuple[int, ...]  # candidates that each of them stands for


JOIN = TaskKind[JoinPayload, CandidateSample]("near-join", STAGE_VERSION, CandidateSample)


@dataclass(frozen=True)
class JoinedBands:
    """The candidates of all parts; a pair may be in several."""

    files: FileRecord  # list of the files of candidates, (E, 2) ids each, ascending
    documents: FileRecord  # list of files of the documents in these pairs, ids, ascending
    samples: tuple[CandidateSample, ...]
    num_pairs: int
    num_hot_buckets: int


def join_bands(context: Context, view: View, run: Run, params: NearDuplicatesParams, bands: FileRecord) -> JoinedBands:
    """Find the candidates among the documents of a list of bands."""
    num_documents = int(view.shards.num_documents.sum())
    num_bands = parse_bands(params.bands, params.permutations).count
    parts = parts_of_bands(num_documents, num_bands)
    tasks = [JOIN.task(JoinPayload(run.id, bands.path, *part), [bands.digest.sha256.hex()]) for part in parts]
    entries = max(num_documents * (end - first) // prefixes for first, end, _, prefixes in parts)
    records = context.engine.run(run, tasks, run_join, context.progress, extra_bytes=ENTRY_BYTES * entries)
    counts = add_counts(records)
    documents = tuple(record.files[-1].path for record in records)
    candidates = tuple(file.path for record in records for file in record.files[:-1])
    return JoinedBands(
        files=publish_list(context.storage, run.id, "candidates", FileList(candidates)),
        documents=publish_list(context.storage, run.id, "compared", FileList(documents)),
        samples=tuple(record.result for record in records),
        num_pairs=counts["pairs"],
        num_hot_buckets=counts["hot_buckets"],
    )


def parts_of_bands(num_documents: int, num_bands: int) -> list[tuple[int, int, int, int]]:
    """The parts of a join: first band, end band, prefix and number of prefixes of each. A small database has one."""
    num_prefixes = power_of_two(num_documents, PREFIX_ENTRIES)
    together = min(num_bands, max(1, PART_ENTRIES // max(1, num_documents)))
    return [
        (first, min(first + together, num_bands), prefix, num_prefixes)
        for first in range(0, num_bands, together)
        for prefix in range(num_prefixes)
    ]


def run_join(storage: Storage, task: Task[JoinPayload, CandidateSample], clock: str) -> TaskRecord[CandidateSample]:
    """The candidates of one part, in files of about MAX_PAIRS, ascending in each; the last file has their documents."""
    del clock
    payload = task.payload
    out = _CandidateFiles(storage, payload.run, task.id)
    runs, num_hot = read_list(storage, payload.bands).bands, 0
    for band in range(payload.first_band, payload.end_band):
        new, old = (_entries(storage, payload, band, runs, is_new=is_new) for is_new in (True, False))
        for candidates in join_band(new, old, MAX_BUCKET, MAX_PAIRS):
            out.add(candidates.pairs)
            num_hot += candidates.num_hot_buckets
    out.flush()
    documents = publish_array(storage, payload.run, f"compared/{task.id}", out.documents)
    sample = CandidateSample(tuple(out.firsts), tuple(out.weights))
    return TaskRecord(task.id, (*out.files, documents), sample, {"pairs": out.num_pairs, "hot_buckets": num_hot})


class _CandidateFiles:
    """Writes candidates of several bands to files of about MAX_PAIRS."""

    def __init__(self, storage: Storage, run: str, task: str) -> None:
        self._storage, self._run, self._task = storage, run, task
        self._pending: list[Int64Array] = []
        self.files: list[FileRecord] = []
        self.documents = np.empty(0, np.int64)  # in the candidates, ascending
        self.firsts: list[int] = []
        self.weights: list[int] = []
        self.num_pairs = 0

    def add(self, pairs: Int64Array) -> None:
        """Add the candidates (E, 2) of a band."""
        self._pending.append(pairs)
        if sum(map(len, self._pending)) > MAX_PAIRS:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        pairs = unique_pairs(np.concatenate([np.empty((0, 2), np.int64), *self._pending]))
        self._pending.clear()
        if not len(pairs):
            return
        name = f"candidates/{self._task}-{len(self.files)}"
        self.files.append(publish_array(self._storage, self._run, name, pairs))
        self.documents = np.union1d(self.documents, pairs)
        step = max(1, len(pairs) // _SAMPLES)
        firsts = pairs[::step, 0].tolist()
        self.firsts += firsts
        self.weights += [step] * len(firsts)
        self.num_pairs += len(pairs)


def _entries(
    storage: Storage, payload: JoinPayload, band: int, runs: Sequence[BandsRun], *, is_new: bool
) -> Iterator[BandEntries]:
    """The rows of one band and prefix of each new, or each old, shard; only these rows of the file are read."""
    verified = VerifiedFiles(storage)
    for run in runs:
        if run.is_new == is_new:
            of_band = verified.array(run.file).row(band)
            hashes = FieldOfRows(of_band, "hash")
            entries = np.array(of_band[prefix_rows(hashes, payload.prefix, payload.num_prefixes)])
            entries["document"] += run.file.first_chunk
            yield entries
