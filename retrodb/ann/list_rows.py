"""The rows of a range of lists in one part, as a join reads them: a part is in list order, so they are one piece of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from retrodb.ann.codegen.list_scan import ScannedLists
from retrodb.ann.exclusion import Exclusion, ExclusionKeys
from retrodb.ann.part import Part
from retrodb.format.arrays import BoolArray, Int32Array, Int64Array


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
        return ScannedLists(
            offsets_L1=self.offsets_L1,
            order_N=np.empty(0, dtype=np.int64),
            codes_ND=arrays.codes_ND[start:end],
            scales_N2=arrays.scales_N2[start:end],
            allowed_N=np.empty(0, dtype=np.bool_) if self.allowed_N is None else self.allowed_N,
            ids_N=self.ids_N,
            keys=exclusion.columns(self.keys, len(self.ids_N), str(part.folder)),
        )
