"""What is in a database, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.entries import DriftEntry, IndexEntry, PinEntry, QueriesEntry, SpaceEntry, TableEntry, TestsetEntry
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

if TYPE_CHECKING:
    from retrodb.format.arrays import Int64Array


@dataclass(frozen=True)
class SourceStats:
    """One source of documents. A document is live when any of its chunks is."""

    source: str
    documents: int
    live_documents: int
    chunks: int
    live_chunks: int
    tokens: int


@dataclass(frozen=True)
class SpaceStats:
    """One vector space and its index."""

    space: str
    encoder: str
    dimension: int
    vectors: int  # of chunks that want one: live, screened, and no short tail
    wanted_chunks: int
    coverage: float  # vectors / wanted chunks; 1 when none is wanted
    index: str | None  # FAISS factory string
    parts: int  # index parts


@dataclass(frozen=True)
class DriftStats:
    """How what was added to a space's index lies in its codebook, beside what the codebook was trained on."""

    space: str
    added: int  # vectors since the training
    residual: float  # of these: mean squared distance to the centre of their list
    residual_at_training: float
    imbalance: float  # of the lists: 1 when all are equal
    imbalance_at_training: float
    canary_recall: float | None  # share of a few chunks' true neighbours in the lists that a search reads
    canary_recall_at_training: float | None
    retrain: str  # why a new codebook would pay; "" when it would not


@dataclass(frozen=True)
class QuerySetStats:
    """One query set beside the database's own chunks."""

    queries: str
    documents: int
    chunks: int


@dataclass(frozen=True)
class TableStats:
    """One neighbour table."""

    table: str
    queries: str
    space: str
    k: int
    rows: int  # live
    short: int  # of these, with fewer than k live neighbours
    files: int  # its base, and the patches of repairs
    edits: int  # bans and pins by hand


@dataclass(frozen=True)
class KindStats:
    """The files of one kind."""

    kind: str
    files: int
    size_bytes: int


@dataclass(frozen=True)
class Stats:
    """Counts, sizes and coverage of one snapshot."""

    database: str
    snapshot: int
    chunk_tokens: int
    tokenizer: str
    shards: int
    documents: int
    live_documents: int
    chunks: int
    live_chunks: int
    tokens: int
    size_bytes: int  # of all live files
    deleted_chunks_by_reason: dict[
        str, int
    ]  # a chunk with two reasons counts in both; of a compacted document one stays
    sources: tuple[SourceStats, ...]
    spaces: tuple[SpaceStats, ...]
    drift: tuple[DriftStats, ...]
    query_sets: tuple[QuerySetStats, ...]
    tables: tuple[TableStats, ...]
    testsets: tuple[TestSetInfo, ...]
    files: tuple[KindStats, ...]


@dataclass(frozen=True)
class TestSetInfo:
    """A registered test set and what it did to the database."""

    __test__ = False  # pytest: no test class

    testset: str
    items: int
    rule: str
    hits: int  # reported pairs of a document and an item
    removed_documents: int
    removed_chunks: int  # by its tombstones, as of now
    unscreened_shards: int  # not yet held against it


@dataclass(frozen=True)
class SnapshotInfo:
    """One version of the database."""

    snapshot: int
    clock: str
    command: str
    documents: int  # ever added up to here
    chunks: int  # ever added up to here
    size_bytes: int  # ever added up to here
    counts: dict[str, int]  # what the command reported
    pins: tuple[str, ...]  # names that keep it from expiring
    expired_at: str | None  # when collection left only a stub; its files may be gone


def read_stats(view: View) -> Stats:
    """Count what one snapshot holds, range by range."""
    snapshot, settings = view.snapshot, view.settings
    sources = _sources(view)
    files = tuple(KindStats(kind, *counts) for kind, counts in view.manifest.size_by_kind().items())
    return Stats(
        database=view.storage.url,
        snapshot=snapshot.number,
        chunk_tokens=settings.chunk_tokens,
        tokenizer=settings.tokenizer_name,
        shards=len(view.shards),
        documents=sum(source.documents for source in sources),
        live_documents=sum(source.live_documents for source in sources),
        chunks=sum(source.chunks for source in sources),
        live_chunks=sum(source.live_chunks for source in sources),
        tokens=sum(source.tokens for source in sources),
        size_bytes=sum(each.size_bytes for each in files),
        deleted_chunks_by_reason=view.chunks.tombstones.count_by_reason(),
        sources=sources,
        spaces=_spaces(view),
        drift=tuple(_drift(view, name) for name in snapshot.names(DriftEntry)),
        query_sets=tuple(_query_set(name, view.query_set(name)) for name in snapshot.names(QueriesEntry)),
        tables=tuple(_table(view, name) for name in snapshot.names(TableEntry)),
        testsets=tuple(list_testsets(view)),
        files=files,
    )


def list_testsets(view: View) -> list[TestSetInfo]:
    """The registered test sets, by name."""
    deleted = view.chunks.tombstones.count_by_reason()
    return [_testset(view, name, deleted.get(f"leak:{name}", 0)) for name in view.snapshot.names(TestsetEntry)]


def list_snapshots(storage: Storage) -> list[SnapshotInfo]:
    """Every version of a database, oldest first."""
    snapshots = [read_snapshot(storage, number) for number in snapshot_numbers(storage)]
    pins = snapshots[-1].names(PinEntry) if snapshots else []
    pinned = {name: snapshots[-1].existing(PinEntry, name).snapshot for name in pins}
    return [
        SnapshotInfo(
            snapshot=each.number,
            clock=each.clock,
            command=each.command,
            documents=each.totals.get("documents", 0),
            chunks=each.totals.get("chunks", 0),
            size_bytes=each.totals.get("bytes", 0),
            counts=dict(each.counts),
            pins=tuple(name for name, number in pinned.items() if number == each.number),
            expired_at=each.expired_at,
        )
        for each in snapshots
    ]


def _sources(view: View) -> tuple[SourceStats, ...]:
    """The sources by name; a range that was joined of several counts for the first of its shards."""
    totals: dict[str, Int64Array] = {}
    for record in view.chunks.ranges:
        layout = view.chunks.layout(record)
        live = view.chunks.live_mask(record.first_chunk, record.num_chunks)
        before = np.concatenate(([0], np.cumsum(live)))
        live_chunks = before[layout.first_row + layout.num_chunks] - before[layout.first_row]
        counts = [
            len(live_chunks),
            (live_chunks > 0).sum(),
            view.chunks.present_mask(record.first_chunk, record.num_chunks).sum(),
            live.sum(),
            layout.num_tokens.sum(),
        ]
        [shard], _ = view.shards.locate(np.array([record.first_chunk]))
        source = view.shards.source[shard]
        totals[source] = totals.get(source, np.zeros(5, dtype=np.int64)) + np.array(counts, dtype=np.int64)
    return tuple(SourceStats(source, *counts.tolist()) for source, counts in sorted(totals.items()))


def _spaces(view: View) -> tuple[SpaceStats, ...]:
    names = view.snapshot.names(SpaceEntry)
    if not names:
        return ()
    wanted, held = 0, dict.fromkeys(names, 0)
    for record in view.chunks.ranges:
        span = record.first_chunk, record.num_chunks
        mask = view.embeddable_mask(*span)
        wanted += int(mask.sum())
        for name in names:
            held[name] += int((mask & view.coverage("vectors", name).covered_mask(*span)).sum())
    return tuple(_space(view, name, held[name], wanted) for name in names)


def _space(view: View, name: str, vectors: int, wanted: int) -> SpaceStats:
    space, index = view.snapshot.existing(SpaceEntry, name), view.snapshot.entry(IndexEntry, name)
    return SpaceStats(
        space=name,
        encoder=space.params.encoder,
        dimension=space.dimension,
        vectors=vectors,
        wanted_chunks=wanted,
        coverage=vectors / wanted if wanted else 1.0,
        index=index.factory if index else None,
        parts=len(_tasks(view, "parts", name)),
    )


def _drift(view: View, name: str) -> DriftStats:
    from retrodb.stages.index.drift import reasons_to_retrain

    entry = view.snapshot.existing(DriftEntry, name)
    at_training = entry.training
    return DriftStats(
        space=name,
        added=entry.added,
        residual=entry.residual,
        residual_at_training=at_training.residual,
        imbalance=entry.imbalance,
        imbalance_at_training=at_training.imbalance,
        canary_recall=entry.canary_recall,
        canary_recall_at_training=at_training.canary_recall,
        retrain=", ".join(reasons_to_retrain(view, name)),
    )


def _tasks(view: View, kind: str, name: str) -> set[int]:
    """Where the ranges begin that files of a kind cover."""
    return {record.first_chunk for record in view.manifest.files(kind, name)}


def _query_set(name: str, chunks: ChunkSet) -> QuerySetStats:
    return QuerySetStats(name, sum(len(chunks.layout(r).first_row) for r in chunks.ranges), chunks.end)


def _table(view: View, name: str) -> TableStats:
    table = NeighbourTable(view, name)
    counts = len(table.rows()), table.num_short(), len(table.files), len(table.edits.all)
    return TableStats(name, table.query_set, table.entry.space, table.k, *counts)


def _testset(view: View, name: str, removed_chunks: int) -> TestSetInfo:
    from retrodb.format.parquet import read_table

    entry = view.snapshot.existing(TestsetEntry, name)
    reports = [read_table(view.files.open(r), ["first_chunk", "removed"]) for r in view.manifest.files("reports", name)]
    rows = [row for report in reports for row in report.to_pylist()]
    return TestSetInfo(
        testset=name,
        items=entry.items,
        rule=entry.params.rule,
        hits=len(rows),
        removed_documents=len({row["first_chunk"] for row in rows if row["removed"]}),
        removed_chunks=removed_chunks,
        unscreened_shards=len(view.unscreened_shards(name)),
    )
