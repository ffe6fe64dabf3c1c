"""The proof of a purge: every file in the database's folder is decoded and searched for traces of the purged documents.

What live documents have in common with a purged one (a quotation, a licence, the same article under another id) belongs to them
and is not counted. These documents are named instead.

A purge proves several times, and may be interrupted and run again. A file is read again only when it may have changed. For every
file that was searched to its end, the run of the purge remembers: its path, a stamp of it (device, inode, size, and the times at
which its bytes and its inode last changed), the digest of the bytes that were searched, the name of the whole set of traces, the
version of the search, and every trace that was found, with its row. The newest search of a path counts. This is still a proof,
because

- what a search finds follows from the bytes, the name of the file and the traces alone. For other traces, a file with another
  path or stamp, or another version of the search, nothing is remembered, and the file is read;
- every write to a file, every replacement and every copy changes its stamp: no program can set the time at which an inode
  changed. A file that changed less than two seconds before it was read, or while it was read, is read again: a second change
  within one tick of the file system's clock would not show;
- a file that could not be searched to its end is read again;
- which files there are, and which of their rows belong to live documents, is never remembered. Rows of a file belong to live
  documents only while its bytes have the digest that the manifest promises.

What a stamp cannot show is a change below the file system, such as a failing disk, and a clock that was set back. `--all`
remembers nothing: each proof reads every file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest

import numpy as np

from retrodb.engine.groups import groups_of
from retrodb.engine.run import Run
from retrodb.engine.task import Task, TaskRecord, parse_record
from retrodb.errors import RetroDBError
from retrodb.format.arrays import AnyArray, BoolArray, UInt64Array, map_array
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.maintain.purge.live_rows import LiveRows, RowOwnership
from retrodb.maintain.purge.scanner import METADATA
from retrodb.maintain.purge.search_task import (
    KIND,
    STAGE_VERSION,
    SearchedFile,
    SearchPayload,
    SearchResult,
    run_search,
)
from retrodb.maintain.purge.traces import KINDS, stored_traces
from retrodb.stages.context import Context
from retrodb.store.collection import unused_blocks
from retrodb.store.storage import FileStat, Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.view import View

_MAX_SHOWN = 10  # live documents that are named because they share text
_SKIPPED = ("purged/", "rows/", "blocks/", "locks/", "retrodb.toml", "tokenizer.json")
"""The keys of purged documents, row numbers, block digests, holders of locks, and files that are older than every document."""
_TASK_BYTES = 64 << 20  # small files are searched together, so that few records are written
_MIN_FILE_BYTES = _TASK_BYTES // 1024  # what a file counts at least


@dataclass(frozen=True)
class RemainingTrace:
    """Traces of purged documents in one location of a file."""

    path: str
    location: str  # in the file, with the first row, such as "column text, row 3"
    kind: str  # of trace; or why the file could not be searched
    num_values: int


@dataclass(frozen=True)
class SharingDocument:
    """A live document that has text in common with a purged one."""

    source: str
    doc_id: str
    num_shingles: int  # in common


@dataclass(frozen=True)
class Proof:
    """What was searched for, how much was searched, and what remains."""

    num_files: int  # searched
    size_bytes: int  # of these files
    num_read_files: int  # of these: read by this proof. The others have not changed since an earlier one searched them
    num_traces: Mapping[str, int]  # searched for, by kind
    num_compared: Mapping[str, int]  # values that were compared with the traces, by kind
    remaining: tuple[RemainingTrace, ...]  # empty when nothing is left
    num_sharing_documents: int  # live documents that contain the same 13 words in a row
    sharing_documents: tuple[SharingDocument, ...]  # those that share most


@dataclass(frozen=True)
class _Searched:
    """A searched file, and the file with its hits."""

    file: SearchedFile
    locations: tuple[str, ...]
    hits: FileRecord

    def read_hits(self, storage: Storage) -> AnyArray:
        """(n,) HIT_DTYPE."""
        array = map_array(storage.local(self.hits.path))
        return np.asarray(array[self.file.first_hit : self.file.first_hit + self.file.num_hits])


def run_proof(context: Context, view: View, run: Run, *, read_all: bool = False) -> Proof:
    """Search all files of a database for the traces that a run has stored.

    Args:
        read_all: read every file, also those that have not changed since an earlier proof of the run searched them.
    """
    traces = stored_traces(context.storage, run.id)
    stats = _stats(context.storage, skip=path_of("runs", run=run.id, file=""))
    remembered, number = _remembered(context.storage, run, traces.id)
    known = {} if read_all else _unchanged(remembered, stats)
    tasks = _tasks(run, traces.id, {path: stat for path, stat in stats.items() if path not in known}, number)
    records = context.engine.run(run, tasks, run_search, context.progress, unit="B")
    searched = known | {item.file.path: item for record in records for item in _searched(record)}
    results = [searched[path] for path in sorted(searched)]
    num_compared = sum((Counter(item.file.num_compared) for item in results), Counter[str]())
    live = _in_live_documents(view, results)
    documents = view.chunks.documents(np.array([first_chunk for first_chunk, _ in live.most_sharing], np.int64))
    return Proof(
        num_files=len(stats),
        size_bytes=sum(stat.size_bytes for stat in stats.values()),
        num_read_files=len(stats) - len(known),
        num_traces={kind: len(values) for kind, values in traces.values.items()},
        num_compared=dict(num_compared),
        remaining=(*_remaining(view, results, live.values), *_blocks_without_file(context.storage)),
        num_sharing_documents=live.num_sharing,
        sharing_documents=tuple(
            SharingDocument(document["source"], document["doc_id"], num_shingles)
            for document, (_, num_shingles) in zip(documents, live.most_sharing, strict=True)
            if document is not None
        ),
    )


def _unchanged(remembered: Mapping[str, _Searched], stats: Mapping[str, FileStat]) -> dict[str, _Searched]:
    """What was searched in files that have not changed since."""
    return {path: item for path, item in remembered.items() if path in stats and item.file.stamp == stats[path].stamp}


def _blocks_without_file(storage: Storage) -> Iterator[RemainingTrace]:
    """Digests of blocks whose file is gone: the digests of live files say nothing that these files do not say."""
    for path in unused_blocks(storage):
        yield RemainingTrace(path, "-", "block digests of a file that is gone", 1)


def _stats(storage: Storage, skip: str) -> dict[str, FileStat]:
    """The files to search."""
    stats = {path.removeprefix("./"): stat for path, stat in storage.stats("").items()}
    return {path: stat for path, stat in stats.items() if not path.startswith((*_SKIPPED, skip))}


def _tasks(
    run: Run, traces: str, stats: Mapping[str, FileStat], number: int
) -> list[Task[SearchPayload, SearchResult]]:
    """The tasks that search files: large files alone, small ones together.

    Files that changed last come last: until then they may have settled, so that the next proof need not read them again.
    """
    by_change = sorted(stats.items(), key=lambda item: item[1].changed_ns)
    tasks = []
    for group in groups_of(by_change, lambda item: max(item[1].size_bytes, _MIN_FILE_BYTES), _TASK_BYTES):
        payload = SearchPayload(run.id, traces, tuple(path for path, _ in group), number)
        tasks.append(KIND.task(payload, weight=sum(stat.size_bytes for _, stat in group)))
    return tasks


def _remembered(storage: Storage, run: Run, traces: str) -> tuple[dict[str, _Searched], int]:
    """What the newest search of each path found for these traces, and the number of all tasks of the run.

    A path whose newest search did not come to its end is left out, whatever earlier ones found.
    """
    records, files = list[TaskRecord[SearchResult]](), VerifiedFiles(storage)
    paths = storage.list(path_of("runs", run=run.id, file="tasks"))
    for path in paths:
        try:
            record = parse_record(storage.read(path), SearchResult, where=path)
            for file in record.files:
                files.open(file)
        except RetroDBError:  # torn or damaged, or of another kind of tasks: these files are read again
            continue
        if (record.result.traces, record.result.version) == (traces, STAGE_VERSION):
            records.append(record)
    records.sort(key=lambda record: record.result.number)
    newest = {item.file.path: item for record in records for item in _searched(record)}
    return {path: item for path, item in newest.items() if not item.file.problem}, len(paths)


def _searched(record: TaskRecord[SearchResult]) -> Iterator[_Searched]:
    [hits] = record.files
    return (_Searched(file, record.result.locations, hits) for file in record.result.files)


@dataclass(frozen=True)
class _OwnedHits:
    """The hits of one file, and whom they belong to."""

    item: _Searched
    hits: AnyArray  # (n,) HIT_DTYPE
    is_live: BoolArray  # (n,) whether the row belongs to a live document
    owners: RowOwnership

    def shared_values(self) -> Iterator[tuple[str, UInt64Array]]:
        """The values of each kind that live documents have in common with the purged ones, without ids that they mention."""
        is_mention = np.zeros(len(self.hits), dtype=bool)
        if METADATA in self.item.locations:
            is_mention = self.hits["location"] == self.item.locations.index(METADATA)
            is_mention &= self.hits["kind"] == KINDS.index("id")
        shared = self.hits[self.is_live & ~is_mention]
        for number in np.unique(shared["kind"]).tolist():
            yield KINDS[number], np.unique(shared["value"][shared["kind"] == number])

    def sharing_documents(self) -> Counter[int]:
        """The live documents with words of a purged one, by the ids of their first chunks: how many shingles they share."""
        if self.owners.documents is None:
            return Counter()
        hits = self.hits[self.is_live & (self.hits["kind"] == KINDS.index("shingle"))]
        pairs = np.stack([self.owners.documents(hits["row"]), hits["value"].astype(np.int64)])
        return Counter(np.unique(pairs, axis=1)[0].tolist())


def _owned_hits(view: View, results: Sequence[_Searched]) -> Iterator[_OwnedHits]:
    """The hits of every file that has some, one file at a time."""
    live_rows = LiveRows(view)
    for item in results:
        if item.file.num_hits:
            hits = item.read_hits(view.storage)
            owners = live_rows.of(item.file.path, item.file.xxh3, item.file.num_rows)
            yield _OwnedHits(item, hits, owners.live(hits["row"]), owners)


@dataclass
class _InLiveDocuments:
    """What live documents have in common with purged ones."""

    values: dict[str, UInt64Array]  # by kind: ascending, distinct traces
    num_sharing: int  # documents
    most_sharing: list[tuple[int, int]]  # id of the first chunk of those that share most, and number of shingles


def _in_live_documents(view: View, results: Sequence[_Searched]) -> _InLiveDocuments:
    live = _InLiveDocuments({kind: np.empty(0, np.uint64) for kind in KINDS}, 0, [])
    for owned in _owned_hits(view, results):
        for kind, values in owned.shared_values():
            live.values[kind] = np.union1d(live.values[kind], values)
        sharing = owned.sharing_documents()
        live.num_sharing += len(sharing)
        candidates = [*live.most_sharing, *sharing.items()]
        live.most_sharing = nsmallest(_MAX_SHOWN, candidates, key=lambda pair: (-pair[1], pair[0]))
    return live


def _remaining(
    view: View, results: Sequence[_Searched], live_values: Mapping[str, UInt64Array]
) -> Iterator[RemainingTrace]:
    """The traces that are not in live documents, and the files that could not be searched."""
    for owned in _owned_hits(view, results):
        hits = owned.hits[~owned.is_live]
        for location, kind in sorted(set(zip(hits["location"].tolist(), hits["kind"].tolist(), strict=True))):
            here = hits[(hits["location"] == location) & (hits["kind"] == kind)]
            left = here[~np.isin(here["value"], live_values[KINDS[kind]])]
            if len(left):
                shown = f"{owned.item.locations[location]}, row {int(left['row'].min())}"
                yield RemainingTrace(owned.item.file.path, shown, KINDS[kind], len(left))
    yield from (RemainingTrace(item.file.path, "-", item.file.problem, 1) for item in results if item.file.problem)
