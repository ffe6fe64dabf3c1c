"""Which ranges of a table are as they were when its rows were compared with them: from records of files, without a bitmap.

What is compared follows from the rows of the files of a range and from its tombstones, and where the table is restricted to some
documents also from these. A digest of all that is stored with the compared ids of each range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from retrodb.config import NeighboursParams
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.neighbours.table_rows import spans_of
from retrodb.store.digest import identity
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedSets, StoredRange, with_gaps
from retrodb.view.coverage import Coverage
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class ComparedStates:
    """The digests of what the rows of a table are compared with now."""

    view: View
    queries: str
    space: str
    params: NeighboursParams

    @cached_property
    def spans(self) -> Mapping[str, list[ChunkRange]]:
        """The ranges of each side, as they are stored."""
        return {
            DATABASE: [record.span for record in self.view.chunks.ranges],
            QUERIES: spans_of(self.view, self.queries),
        }

    def of(self, side: str, span: ChunkRange) -> str:
        """The digest of a range of `spans`; "" where records do not decide which of its ids are compared."""
        query_set = self.queries if side == QUERIES else None
        chunks = self.view.chunks if query_set is None else self.view.query_set(query_set)
        documents = chunks.overlapping("documents", *span)
        tombstones = self._tombstones[side]
        deletions = [(tombstones[file], row) for file, row in chunks.tombstones.locations(*span)]
        inputs = [1, _rows(documents, span), _rows(self._files[side].overlapping(*span), span), deletions]
        if query_set is None:
            if not self.view.is_all_screened(*span):
                return ""
            inputs.append(self._restriction(documents, span))
        return identity(inputs)

    def _restriction(self, documents: Sequence[FileRecord], span: ChunkRange) -> list[object]:
        """What chooses documents of a range."""
        params = self.params
        if not params.is_restricted:
            return []
        scores = self.view.coverage("attributes").overlapping(*span) if params.where is not None else []
        return [params.where, params.sample, params.seed, [record.path for record in (*documents, *scores)]]

    @cached_property
    def _files(self) -> Mapping[str, Coverage]:
        return {
            DATABASE: self.view.codes(self.space),
            QUERIES: self.view.query_vectors(self.queries, self.space),
        }

    @cached_property
    def _tombstones(self) -> Mapping[str, list[str]]:
        """The digests of the files of tombstones."""
        of_chunks, of_queries = (self.view.tombstone_files(name) for name in (SELF, self.queries))
        return {
            DATABASE: [record.digest.sha256.hex() for record in of_chunks],
            QUERIES: [record.digest.sha256.hex() for record in of_queries],
        }


def _rows(files: Sequence[FileRecord], span: ChunkRange) -> list[object]:
    """Which ids of a range some files have."""
    return [(file.first_chunk - span.first_chunk, file.num_chunks, file.rows) for file in files]


@dataclass(frozen=True)
class SplitRanges:
    """The ranges of one side that are compared now, or were compared before."""

    unchanged: list[StoredRange]
    to_look_at: list[ChunkRange]  # ascending; nothing else is new or lost


def split_ranges(before: ComparedSets, states: ComparedStates, side: str) -> SplitRanges:
    """The ranges that are as they were, and all others."""
    now = set(states.spans[side])
    unchanged = [
        stored
        for stored in before.stored(side)
        if stored.state and stored.span in now and stored.state == states.of(side, stored.span)
    ]
    known = {stored.span for stored in unchanged}
    ranges = with_gaps(states.spans[side], before.ranges(side))
    return SplitRanges(unchanged, [span for span in ranges if span not in known])
