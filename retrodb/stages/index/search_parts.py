"""The index parts of a space as a search has them: their records. A part is opened when a query asks it for candidates.

Ids follow from the row bitmaps. Whether a chunk may be found is asked for the candidates of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.ann.part import Part
from retrodb.ann.rerank import LivePart, SearchPart
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array, VectorArray
from retrodb.format.rows import RowSet
from retrodb.memory import MIB, PROCESS_MEMORY, require_memory, with_caches
from retrodb.stages.index.live_parts import PartFiles, live_parts, live_rows, open_files, parts_of
from retrodb.view.coverage import Coverage
from retrodb.view.view import View


@dataclass(frozen=True)
class StoredPart:
    """A part of a snapshot that is asked for candidates, see `SearchPart`."""

    view: View
    space: str
    files: PartFiles
    before: Coverage | None  # the parts before, which hold rows of this one too: a row is found in the first of them

    @cached_property
    def part(self) -> Part:
        """The part, opened when the first query asks it."""
        return open_files(self.view.files, self.files)

    @cached_property
    def rows(self) -> RowSet:
        """Its rows of the range of ids that it covers."""
        return self.files.row_set(self.view.files)

    @property
    def max_allowed(self) -> int:
        return self.files.num_rows

    @cached_property
    def asks_candidates(self) -> bool:
        span, view = self.files.span, self.view
        return self.before is not None or not (view.chunks.is_all_live(*span) and view.is_all_screened(*span))

    @cached_property
    def allowed_N(self) -> BoolArray | None:
        if not self.asks_candidates:
            return None
        allowed = live_rows(self.view, self.files, self.ids_of(np.arange(self.files.num_rows)), self.before)
        return None if allowed.all() else allowed

    @property
    def num_allowed(self) -> int:
        """The number of rows that may be found; this looks at all of them."""
        return self.files.num_rows if self.allowed_N is None else int(np.count_nonzero(self.allowed_N))

    @property
    def fetch(self) -> Callable[[Int64Array], VectorArray]:
        return self._vectors

    def ids_of(self, rows: Int64Array) -> Int64Array:
        return self.files.span.first_chunk + self.rows.select(rows)

    def rows_of(self, ids: Int64Array) -> Int64Array:
        return self.rows.rank(ids - self.files.span.first_chunk)

    def are_allowed(self, ids: Int64Array) -> BoolArray:
        asked = np.unique(ids[ids != NO_NEIGHBOUR])
        allowed = asked[self.view.chunks.is_live(asked) & self.view.is_screened(asked)]
        if self.before is not None and len(allowed):
            held = np.concatenate([np.empty(0, np.int64), *(hit.where for hit in self.before.lookup(allowed))])
            allowed = np.delete(allowed, held)
        return np.isin(ids, allowed)

    def _vectors(self, rows: Int64Array) -> AnyArray:
        return self.view.vectors(self.space, self.ids_of(rows))


def search_parts(
    view: View,
    space: str,
    *,
    source: str | None = None,
    documents: Int64Array | None = None,
    is_limited: bool = True,
) -> list[SearchPart]:
    """Every part of a space for a search. With a restriction, the allowed rows are known at once, as in `live_parts`.

    Args:
        is_limited: whether the command takes a memory limit.

    Raises:
        NotEnoughMemory: for a restriction of so many rows, or a space of so many that keeps no vectors.
    """
    is_restricted = source is not None or documents is not None
    if is_limited:
        needed = search_bytes(view, space, is_restricted=is_restricted)
        require_memory("this search", needed, PROCESS_MEMORY.limit_bytes)
    if is_restricted:
        return [*live_parts(view, space, source=source, documents=documents)]
    parts: list[SearchPart] = []
    covered_end = 0  # one past the ids of the parts before
    for number, files in enumerate(all_files := parts_of(view, space)):
        overlaps = files.span.first_chunk < covered_end
        before = Coverage([part.records[0] for part in all_files[:number]], view.files) if overlaps else None
        covered_end = max(covered_end, files.span.end)
        parts.append(StoredPart(view, space, files, before))
    return parts


_SEARCH_MIB = 140  # the library, FAISS and the compiled kernels


def search_bytes(view: View, space: str, *, is_restricted: bool) -> int:
    """Memory of the process of a search, from the records of the parts.

    Search codes are mapped. Where no vectors are kept, the position of each row among the codes is in memory. A restricted search
    has an id and a byte of the mask for each row, and about ten int64 arrays of the rows of one part while that is opened.
    """
    parts, needed = parts_of(view, space), _SEARCH_MIB * MIB
    if not view.keeps_vectors(space):
        needed += 8 * sum(part.num_rows for part in parts)
    if is_restricted:
        needed += (8 + 1) * sum(part.num_rows for part in parts) + 80 * max(
            (part.num_rows for part in parts), default=0
        )
    return with_caches(needed)


def num_findable(parts: list[SearchPart]) -> int:
    """Chunks that the parts let a search find; this looks at all of them where rows are deleted."""
    return sum(part.num_allowed for part in parts if isinstance(part, StoredPart | LivePart))
