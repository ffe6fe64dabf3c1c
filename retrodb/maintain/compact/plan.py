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
        memory_bytes = self.view.snapshot.existing(IndexEntry, space).params.memory_bytes
        merges = () if self.rows_to_drop is not None else plan_merge(self.view, space, memory_bytes).groups
        merged = {part.folder for parts in merges for part in parts}
        others = [part for part in parts_of(self.view, space) if part.folder not in merged]
        return [*merges, *((part,) for part in others if self._needs_rewrite(part))]

    def fold(self, table: str) -> FoldPlan | None:
        """How to fold a neighbour table; None when it has no patches and names no deleted chunk."""
        return plan_fold(self.view, table)

    @property
    def spaces(self) -> list[str]:
        """The spaces with an index."""
        return self.view.snapshot.names(IndexEntry)

    @property
    def tables(self) -> list[str]:
        """The neighbour tables."""
        return self.view.snapshot.names(TableEntry)

    @property
    def result(self) -> CompactResult:
        """The result of a dry run. It reads every neighbour table."""
        num_parts = sum(len(parts) for space in self.spaces for parts in self.part_groups(space))
        tables = [table for table in self.tables if self.fold(table) is not None]
        return compact_result(self.view, self.rewrites, num_parts, tables, freed_bytes=None, dry_run=True)

    def _needs_rewrite(self, part: PartFiles) -> bool:
        span, held = part.span, part.row_set.mask
        if self.rows_to_drop is not None:  # also rows that the shards do not have any more
            unwanted = self.rows_to_drop.mask(SELF, span) | ~self.view.chunks.present_mask(*span)
            return bool((unwanted & held).any())
        num_deleted = int((held & ~self.view.chunks.live_mask(*span)).sum())
        return 0 < num_deleted >= self.min_deleted * int(held.sum())


def plan_compact(view: View, min_deleted: float, rows_to_drop: RowsToDrop | None = None) -> CompactPlan:
    """Plan a compaction.

    Raises:
        UsageError: the fraction is not between 0 and 1.
    """
    if not 0 <= min_deleted <= 1:
        raise UsageError(f"invalid fraction: {min_deleted}", remedy="Give one between 0 and 1, such as 10%.")
    return CompactPlan(view, min_deleted, rows_to_drop)


def compact_result(
    view: View,
    rewrites: Sequence[Rewrite],
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
    ranges = tuple(
        CompactedRange(r.query_set, r.source, *r.span, r.num_shards, r.num_dropped_chunks, r.num_dropped_documents)
        for r in rewrites
    )
    return CompactResult(
        snapshot=view.snapshot.number,
        ranges=ranges,
        num_dropped_chunks=sum(compacted.num_dropped_chunks for compacted in ranges),
        num_dropped_documents=sum(compacted.num_dropped_documents for compacted in ranges),
        num_rewritten_parts=num_parts,
        folded_tables=tuple(tables),
        freed_bytes=freed_bytes,
        dry_run=dry_run,
    )
