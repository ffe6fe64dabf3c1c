"""What a compaction would do, and what it did.

Each part of a plan is computed when it is first read, because every commit of a compaction is planned on its own snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from retrodb.errors import UsageError
from retrodb.format.entries import IndexEntry, QueriesEntry, TableEntry
from retrodb.maintain.compact.ranges import Rewrite, RowsToDrop, plan_rewrites
from retrodb.maintain.compact.rewrite import count_dropped_documents
from retrodb.maintain.compact.row_counts import count_held_rows
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import PartFiles, parts_of
from retrodb.stages.index.merge import plan_merge
from retrodb.stages.neighbours.fold import FoldPlan, plan_fold
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class CompactedRange:
    """One range of ids that was rewritten."""

    query_set: str
    source: str
    first_chunk: int
    num_chunks: int
    num_shards: int  # that became one
    num_dropped_chunks: int
    num_dropped_documents: int


@dataclass(frozen=True)
class CompactResult:
    """What a compaction did."""

    snapshot: int
    ranges: tuple[CompactedRange, ...]
    num_dropped_chunks: int
    num_dropped_documents: int
    num_rewritten_parts: int  # index parts that were merged, or lost their deleted rows
    folded_tables: tuple[str, ...]  # neighbour tables whose patches were folded and deleted neighbours dropped
    freed_bytes: int | None  # size of the live files before minus after; collection frees it. None in a dry run
    dry_run: bool = False


@dataclass(frozen=True)
class CompactPlan:
    """What a compaction of a snapshot would do."""

    view: View
    min_deleted: float  # rewrite a file once this fraction of its rows is deleted
    rows_to_drop: RowsToDrop | None = None  # rewrite only what holds one of these rows

    @cached_property
    def rewrites(self) -> list[Rewrite]:
        """The ranges of chunks and of query sets to rewrite."""
        query_sets = (SELF, *self.view.snapshot.names(QueriesEntry))
        return [
            rewrite
            for query_set in query_sets
            for rewrite in plan_rewrites(self.view, query_set, self.min_deleted, self.rows_to_drop)
        ]

    def part_groups(self, space: str) -> list[tuple[PartFiles, ...]]:
        """The index parts of a space to rewrite; the parts of a group become one."""
        merges = () if self.rows_to_drop is not None else plan_merge(self.view, space).groups
        merged = {part.folder for parts in merges for part in parts}
        others = [part for part in parts_of(self.view, space) if part.folder not in merged]
        return [*merges, *((part,) for part in others if self._needs_rewrite(part))]

    def fold(self, context: Context, table: str) -> FoldPlan | None:
        """How to fold a neighbour table; None when it has no patches and names no deleted chunk."""
        return plan_fold(context, self.view, table)

    @property
    def spaces(self) -> list[str]:
        """The spaces with an index."""
        return self.view.snapshot.names(IndexEntry)

    @property
    def tables(self) -> list[str]:
        """The neighbour tables."""
        return self.view.snapshot.names(TableEntry)

    def result(self, context: Context) -> CompactResult:
        """The result of a dry run. Tasks read the neighbour tables and the documents of the ranges to rewrite."""
        num_parts = sum(len(parts) for space in self.spaces for parts in self.part_groups(space))
        tables = [table for table in self.tables if self.fold(context, table) is not None]
        counts = count_dropped_documents(context, self.view, self.rewrites)
        ranges = [compacted_range(*pair) for pair in zip(self.rewrites, counts, strict=True)]
        return compact_result(self.view, ranges, num_parts, tables, freed_bytes=None, dry_run=True)

    def _needs_rewrite(self, part: PartFiles) -> bool:
        if self.rows_to_drop is None and self.view.chunks.is_all_live(*part.span):
            return False
        rows = part.row_set(self.view.files)
        held = count_held_rows(self.view.chunks, part.span, rows)
        if self.rows_to_drop is not None:  # also rows that the shards do not have any more
            unwanted = rows.rank(self.rows_to_drop.rows(SELF, part.span)) >= 0
            return held.num_present < part.num_rows or bool(unwanted.any())
        num_deleted = part.num_rows - held.num_live
        return 0 < num_deleted >= self.min_deleted * part.num_rows


def plan_compact(view: View, min_deleted: float, rows_to_drop: RowsToDrop | None = None) -> CompactPlan:
    """Plan a compaction.

    Raises:
        UsageError: the fraction is not between 0 and 1.
    """
    if not 0 <= min_deleted <= 1:
        raise UsageError(f"invalid fraction: {min_deleted}", remedy="Give one between 0 and 1, such as 10%.")
    return CompactPlan(view, min_deleted, rows_to_drop)


def compacted_range(rewrite: Rewrite, num_dropped_documents: int) -> CompactedRange:
    """What happens to a range."""
    return CompactedRange(
        query_set=rewrite.query_set,
        source=rewrite.source,
        first_chunk=rewrite.span.first_chunk,
        num_chunks=rewrite.span.num_chunks,
        num_shards=rewrite.num_shards,
        num_dropped_chunks=rewrite.num_dropped_chunks,
        num_dropped_documents=num_dropped_documents,
    )


def compact_result(
    view: View,
    ranges: Sequence[CompactedRange],
    num_parts: int,
    tables: Sequence[str],
    *,
    freed_bytes: int | None,
    dry_run: bool = False,
) -> CompactResult:
    """The result of a compaction.

    Args:
        num_parts: index parts that were rewritten.
        tables: neighbour tables that were folded.
    """
    return CompactResult(
        snapshot=view.snapshot.number,
        ranges=tuple(ranges),
        num_dropped_chunks=sum(compacted.num_dropped_chunks for compacted in ranges),
        num_dropped_documents=sum(compacted.num_dropped_documents for compacted in ranges),
        num_rewritten_parts=num_parts,
        folded_tables=tuple(tables),
        freed_bytes=freed_bytes,
        dry_run=dry_run,
    )
