"""What is in a database, and how much space it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.entries import DriftEntry, IndexEntry, PinEntry, QueriesEntry, SpaceEntry, TableEntry, TestsetEntry
from retrodb.format.parquet import num_rows_of
from retrodb.store.snapshots import read_head, read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.shard_counts import num_embeddable_chunks, num_embedded_chunks
from retrodb.view.view import View

if TYPE_CHECKING:
    from retrodb.format.arrays import Int64Array


@dataclass(frozen=True)
class SourceStats:
    """One source of documents. A document is live when one of its chunks is."""

    source: str
    num_documents: int
    num_live_documents: int
    num_chunks: int
    num_live_chunks: int
    num_tokens: int


@dataclass(frozen=True)
class SpaceStats:
    """One vector space and its index."""

    space: str
    encoder: str
    dimension: int
    num_vectors: int  # of embeddable chunks
    num_embeddable_chunks: int  # live, screened, and no short tail
    coverage: float  # num_vectors / num_embeddable_chunks; 1 when there are no such chunks
    index: str | None  # FAISS factory string
    num_parts: int  # index parts


@dataclass(frozen=True)
class DriftStats:
    """How vectors that were added to a space's index fit its codebook, compared with those that it was trained on."""

    space: str
    num_added_vectors: int  # since the training
    residual: float  # of these: mean squared distance to the centre of their list
    residual_at_training: float
    imbalance: float  # of the lists: 1 when all are equal
    imbalance_at_training: float
    canary_recall: float | None  # fraction of a few chunks' true neighbours in the lists that a search reads
    canary_recall_at_training: float | None
    retrain: str  # why a new codebook is worth training; "" when it is not


@dataclass(frozen=True)
class QuerySetStats:
    """One query set other than the database's own chunks."""

    queries: str
    num_documents: int
    num_chunks: int


@dataclass(frozen=True)
class TableStats:
    """One neighbour table."""

    table: str
    queries: str
    space: str
    k: int
    num_rows: int  # live
    num_short_rows: int  # with fewer than k neighbours, when the table was last computed or repaired
    num_files: int  # its base, and the patches of repairs
    num_edits: int  # banned and pinned neighbours


@dataclass(frozen=True)
class KindStats:
    """The files of one kind."""

    kind: str
    num_files: int
    size_bytes: int


@dataclass(frozen=True)
class Stats:
    """Counts, sizes and coverage of one snapshot."""

    database: str
    snapshot: int
    chunk_tokens: int
    tokenizer: str
    num_shards: int
    num_documents: int
    num_live_documents: int
    num_chunks: int
    num_live_chunks: int
    num_tokens: int
    size_bytes: int  # of all live files
    num_deleted_chunks_by_reason: dict[str, int]  # a chunk with two reasons counts twice, a compacted document once
    sources: tuple[SourceStats, ...]
    spaces: tuple[SpaceStats, ...]
    drift: tuple[DriftStats, ...]
    query_sets: tuple[QuerySetStats, ...]
    tables: tuple[TableStats, ...]
    testsets: tuple[TestSetInfo, ...]
    files: tuple[KindStats, ...]


@dataclass(frozen=True)
class TestSetInfo:
    """A registered test set and what it removed from the database."""

    __test__ = False  # pytest: no test class

    testset: str
    num_items: int
    rule: str
    num_hits: int  # reported pairs of a document and an item
    num_removed_documents: int
    num_removed_chunks: int  # that its tombstones delete now
    num_unscreened_shards: int  # not yet compared with it


@dataclass(frozen=True)
class SnapshotInfo:
    """One version of the database."""

    snapshot: int
    clock: str
    command: str
    num_documents: int  # added in this snapshot and all before it
    num_chunks: int  # added in this snapshot and all before it
    size_bytes: int  # added in this snapshot and all before it
    counts: dict[str, int]  # what the command reported
    pins: tuple[str, ...]  # names that keep it from expiring
    expired_at: str | None  # when collection left only a stub; its files may be deleted


def read_stats(view: View) -> Stats:
    """Count the contents of one snapshot, range by range."""
    snapshot, settings = view.snapshot, view.settings
    sources = _sources(view)
    files = tuple(KindStats(kind, *counts) for kind, counts in view.manifest.size_by_kind().items())
    return Stats(
        database=view.storage.url,
        snapshot=snapshot.number,
        chunk_tokens=settings.chunk_tokens,
        tokenizer=settings.tokenizer_name,
        num_shards=len(view.shards),
        num_documents=sum(source.num_documents for source in sources),
        num_live_documents=sum(source.num_live_documents for source in sources),
        num_chunks=sum(source.num_chunks for source in sources),
        num_live_chunks=sum(source.num_live_chunks for source in sources),
        num_tokens=sum(source.num_tokens for source in sources),
        size_bytes=sum(kind.size_bytes for kind in files),
        num_deleted_chunks_by_reason=_deleted_chunks(view),
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
    deleted = _deleted_chunks(view)
    return [_testset(view, name, deleted.get(f"leak:{name}", 0)) for name in view.snapshot.names(TestsetEntry)]


def list_snapshots(storage: Storage) -> list[SnapshotInfo]:
    """Every version of a database, oldest first."""
    snapshots = [read_snapshot(storage, number) for number in snapshot_numbers(storage)]
    head = read_head(storage)
    pins = head.names(PinEntry)
    pinned = {name: head.existing(PinEntry, name).snapshot for name in pins}
    return [
        SnapshotInfo(
            snapshot=snapshot.number,
            clock=snapshot.clock,
            command=snapshot.command,
            num_documents=snapshot.totals.get("documents", 0),
            num_chunks=snapshot.totals.get("chunks", 0),
            size_bytes=snapshot.totals.get("bytes", 0),
            counts=dict(snapshot.counts),
            pins=tuple(name for name, number in pinned.items() if number == snapshot.number),
            expired_at=snapshot.expired_at,
        )
        for snapshot in snapshots
    ]


def _sources(view: View) -> tuple[SourceStats, ...]:
    """The sources by name, from the counts of their shards."""
    totals: dict[str, Int64Array] = {}
    for number, source in enumerate(view.shards.source):
        shard = view.shards.record(number)
        live = view.manifest.live_counts(shard.first_chunk)
        num_present = view.chunks.file("documents", *shard.span).num_rows
        counts = shard.num_documents, live.num_documents, num_present, live.num_chunks, live.num_tokens
        totals[source] = totals.get(source, np.zeros(5, dtype=np.int64)) + np.array(counts, dtype=np.int64)
    return tuple(SourceStats(source, *counts.tolist()) for source, counts in sorted(totals.items()))


def _deleted_chunks(view: View) -> dict[str, int]:
    """Chunks that each reason deletes now; a chunk with two reasons counts in both."""
    counts: Counter[str] = Counter()
    for by_reason in view.manifest.counts.values():
        counts.update({reason: record.num_chunks for reason, record in by_reason.items() if reason})
    return {reason: count for reason, count in sorted(counts.items()) if count}


def _spaces(view: View) -> tuple[SpaceStats, ...]:
    names = view.snapshot.names(SpaceEntry)
    if not names:
        return ()
    num_embeddable, num_vectors = num_embeddable_chunks(view), {name: num_embedded_chunks(view, name) for name in names}
    return tuple(_space(view, name, num_vectors[name], num_embeddable) for name in names)


def _space(view: View, name: str, num_vectors: int, num_embeddable: int) -> SpaceStats:
    space, index = view.snapshot.existing(SpaceEntry, name), view.snapshot.entry(IndexEntry, name)
    return SpaceStats(
        space=name,
        encoder=space.params.encoder,
        dimension=space.dimension,
        num_vectors=num_vectors,
        num_embeddable_chunks=num_embeddable,
        coverage=num_vectors / num_embeddable if num_embeddable else 1.0,
        index=index.factory if index else None,
        num_parts=len({record.first_chunk for record in view.manifest.files("parts", name)}),
    )


def _drift(view: View, name: str) -> DriftStats:
    from retrodb.stages.index.drift import reasons_to_retrain

    entry = view.snapshot.existing(DriftEntry, name)
    at_training = entry.training
    return DriftStats(
        space=name,
        num_added_vectors=entry.added,
        residual=entry.residual,
        residual_at_training=at_training.residual,
        imbalance=entry.imbalance,
        imbalance_at_training=at_training.imbalance,
        canary_recall=entry.canary_recall,
        canary_recall_at_training=at_training.canary_recall,
        retrain=", ".join(reasons_to_retrain(view, name)),
    )


def _query_set(name: str, chunks: ChunkSet) -> QuerySetStats:
    num_documents = sum(num_rows_of(chunks.files.open(record)) for record in chunks.ranges)
    return QuerySetStats(name, num_documents, chunks.end)


def _table(view: View, name: str) -> TableStats:
    table = NeighbourTable(view, name)
    counts = table.num_rows(), table.entry.num_short, len(table.files), len(table.edits.all)
    return TableStats(name, table.query_set, table.entry.space, table.k, *counts)


def _testset(view: View, name: str, num_removed_chunks: int) -> TestSetInfo:
    from retrodb.format.parquet import read_table

    entry = view.snapshot.existing(TestsetEntry, name)
    reports = [read_table(view.files.open(r), ["first_chunk", "removed"]) for r in view.manifest.files("reports", name)]
    removed = [report.filter(report.column("removed")).column("first_chunk").to_numpy() for report in reports]
    return TestSetInfo(
        testset=name,
        num_items=entry.items,
        rule=entry.params.rule,
        num_hits=sum(report.num_rows for report in reports),
        num_removed_documents=len(np.unique(np.concatenate([np.empty(0, np.int64), *removed]))),
        num_removed_chunks=num_removed_chunks,
        num_unscreened_shards=len(view.unscreened_shards(name)),
    )
