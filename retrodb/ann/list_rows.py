"""The rows of a range of lists in one part, as a join reads them: a part is in list order, so they are one piece of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from retrodb.ann.codegen.equal_rows import ListedRows, link_equal_rows
from retrodb.ann.codegen.list_scan import ScannedLists
from retrodb.ann.exclusion import Exclusion, ExclusionKeys
from retrodb.ann.part import Part
from retrodb.format.arrays import BoolArray, Int32Array, Int64Array

LEAST_LINKED = 1 << 10
"""Rows of a list whose equal ones are looked for: what is repeated a million times is in a few long lists."""


@dataclass(frozen=True)
class ListRows:
    """Rows in list order as of a snapshot: the chunks that they are, and which of them are allowed."""

    part: Part
    first_list: int
    end_list: int
    ids_N: Int64Array  # chunk ids, ascending within each list
    allowed_N: BoolArray | None = None  # live, and within the filter; None: all
    keys: Mapping[str, ExclusionKeys] = field(default_factory=dict)  # exclusion keys by kind, (N,) each

    @property
    def num_allowed(self) -> int:
        """The number of rows that may be found."""
        return len(self.ids_N) if self.allowed_N is None else int(np.count_nonzero(self.allowed_N))

    @cached_property
    def offsets_L1(self) -> Int64Array:
        """Where each list of the range begins and the last ends among these rows."""
        return np.concatenate([[0], np.cumsum(self.part.sizes_of_lists_in(self.first_list, self.end_list))])

    def scanned(self, lists_QA: Int32Array, exclusion: Exclusion) -> ScannedLists:
        """What a scan of some lists of the range reads.

        Args:
            lists_QA: the lists (any shape) by their numbers in the range, -1 for none.

        Raises:
            MismatchError: exclusion keys are missing.
        """
        part, (start, end) = self.part, self.part.span_of_lists(self.first_list, self.end_list)
        arrays = part.lists(np.where(lists_QA >= 0, lists_QA + self.first_list, -1))
        codes_ND, scales_N2 = arrays.codes_ND[start:end], arrays.scales_N2[start:end]
        keys = exclusion.columns(self.keys, len(self.ids_N), str(part.folder))
        self._links.add(np.unique(lists_QA), self.offsets_L1, ListedRows(codes_ND, scales_N2, keys))
        return ScannedLists(
            offsets_L1=self.offsets_L1,
            order_N=np.empty(0, dtype=np.int64),
            codes_ND=codes_ND,
            scales_N2=scales_N2,
            allowed_N=np.empty(0, dtype=np.bool_) if self.allowed_N is None else self.allowed_N,
            ids_N=self.ids_N,
            keys=keys,
            steps_N=self._links.steps_N,
        )

    @cached_property
    def _links(self) -> _EqualRows:
        return _EqualRows(np.zeros(len(self.ids_N), np.int32), np.diff(self.offsets_L1) < LEAST_LINKED)


@dataclass(frozen=True)
class _EqualRows:
    """Links between the equal rows of long lists. They are found when a list is scanned for the first time."""

    steps_N: Int32Array  # see `equal_rows`
    is_done_L: BoolArray

    def add(self, lists: Int32Array, offsets_L1: Int64Array, rows: ListedRows) -> None:
        """Link the rows of some lists, ascending by their numbers in the range, -1 for none."""
        for list_ in lists[lists >= 0][~self.is_done_L[lists[lists >= 0]]].tolist():
            link_equal_rows(offsets_L1[list_], offsets_L1[list_ + 1], rows, self.steps_N)
            self.is_done_L[list_] = True
