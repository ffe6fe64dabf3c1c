"""The ranges of ids to rewrite: from the records of the manifest and the tombstones, one shard after another.

What stays of a range and what its new files are is decided in the task that rewrites it (`range_contents.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.maintain.compact.policy import ShardState, choose_compactions
from retrodb.maintain.compact.range_contents import OtherFiles, other_files, tombstones_of
from retrodb.maintain.compact.row_counts import num_deleted_rows
from retrodb.stages.ingest.shard import SHARD_KINDS
from retrodb.store.verify import VerifiedFiles
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.tombstones import Tombstone
from retrodb.view.view import SELF, View

_ONLY_ROWS_TO_DROP = 2.0  # a fraction of deleted rows that no shard reaches


@dataclass(frozen=True)
class Rewrite:
    """One range of ids that is rewritten."""

    query_set: str
    source: str
    span: ChunkRange
    num_shards: int  # that become one
    num_rows: int  # that the files of the shards hold
    num_dropped_chunks: int  # of these rows
    replaced: tuple[FileRecord, ...]  # the old files


@dataclass(frozen=True)
class RowsToDrop:
    """Ids of rows that have to be dropped, however few they are."""

    ids: dict[str, Int64Array]  # query set -> ids, ascending

    def rows(self, query_set: str, span: ChunkRange) -> Int64Array:
        """The rows of a range that have to be dropped, ascending."""
        ids = self.ids.get(query_set, np.empty(0, np.int64))
        low, high = np.searchsorted(ids, [span.first_chunk, span.end])
        return np.asarray(ids[low:high] - span.first_chunk)


def plan_rewrites(
    view: View, query_set: str, min_deleted: float, rows_to_drop: RowsToDrop | None = None
) -> list[Rewrite]:
    """The ranges to rewrite.

    Args:
        min_deleted: rewrite a shard once this fraction of its rows is deleted.
        rows_to_drop: rewrite only the shards that hold one of these rows, and join none.
    """
    chunks, others = view.query_set(query_set), list(other_files(view, query_set))
    states = [_shard_state(view, query_set, record, others, rows_to_drop) for record in chunks.ranges]
    if rows_to_drop is None:
        runs = choose_compactions(states, min_deleted)
    else:
        runs = choose_compactions(states, _ONLY_ROWS_TO_DROP, max_chunks=0)
    return [_rewrite(chunks, query_set, [states[index] for index in run], others) for run in runs]


def _shard_state(
    view: View, query_set: str, record: FileRecord, others: Sequence[OtherFiles], rows_to_drop: RowsToDrop | None
) -> ShardState:
    chunks = view.query_set(query_set)
    has_rows = False
    if rows_to_drop is not None:
        has_rows = _has_rows(chunks, record, rows_to_drop.rows(query_set, record.span)) or any(
            _holds_more(view.files, other, record)
            for files in others
            if files.content == "array"
            for other in files.coverage.overlapping(*record.span)
        )
    if query_set == SELF:
        num_deleted = record.num_rows - view.manifest.live_counts(record.first_chunk).num_chunks
    else:
        num_deleted = num_deleted_rows(chunks, record)
    return ShardState(_source(view, query_set, record), *record.span, record.num_rows, num_deleted, has_rows)


def _has_rows(chunks: ChunkSet, record: FileRecord, rows: Int64Array) -> bool:
    """Whether a shard holds one of the rows, or the key of a document that began at one of them."""
    if not len(rows):
        return False
    if (chunks.files.rows(record).rank(rows) >= 0).any():
        return True
    starts = (
        chunks.files.array(ids)["row"] + ids.first_chunk - record.first_chunk
        for ids in chunks.overlapping("ids", *record.span)
    )
    return any(bool(np.isin(rows, of_file).any()) for of_file in starts)


def _holds_more(files: VerifiedFiles, other: FileRecord, shard: FileRecord) -> bool:
    """Whether a file holds rows of a shard's range that the shard does not have any more: it was added after a compaction."""
    if shard.num_rows == shard.num_chunks or (other.span, other.rows) == (shard.span, shard.rows):
        return False  # the records say so, of nearly all shards
    rows = files.rows(other).rows_in(other.first_chunk - shard.first_chunk, shard.num_chunks)
    return bool(rows - files.rows(shard).roaring)


def _source(view: View, query_set: str, record: FileRecord) -> str:
    """The source of a range: only ranges of one source are joined."""
    if query_set == SELF:
        [shard], _ = view.shards.locate(np.array([record.first_chunk]))
        return str(view.shards.source[shard])
    for group in iterate_row_groups(view.files.open(record), ["source"]):
        return str(group.column("source")[0].as_py())
    return ""


def _rewrite(chunks: ChunkSet, query_set: str, shards: Sequence[ShardState], others: Sequence[OtherFiles]) -> Rewrite:
    first = shards[0].first_chunk
    span = ChunkRange(first, shards[-1].first_chunk + shards[-1].num_chunks - first)
    of_shards = [record for kind in SHARD_KINDS for record in chunks.overlapping(kind, *span)]
    return Rewrite(
        query_set=query_set,
        source=shards[0].source,
        span=span,
        num_shards=len(shards),
        num_rows=sum(shard.num_rows for shard in shards),
        num_dropped_chunks=sum(shard.num_deleted for shard in shards),
        replaced=(*of_shards, *(record for other in others for record in other.inside(span))),
    )


def untouched_tombstones(view: View, query_set: str, rewrites: Sequence[Rewrite]) -> Iterator[Tombstone]:
    """The tombstones of the shards that are not rewritten, by ascending range."""
    chunks = view.query_set(query_set)
    replaced = {record.path for rewrite in rewrites for record in rewrite.replaced}
    for record in chunks.ranges:
        if record.path not in replaced:
            yield from tombstones_of(chunks, record.span)
