"""Ranges of ids of which those near an id are found by binary search: a database of 10^10 chunks has 15,000 shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from retrodb.format.arrays import Int64Array


class IdRanges:
    """Ranges from a start up to an end, which may overlap."""

    def __init__(self, starts: Int64Array, ends: Int64Array) -> None:
        """
        Args:
            starts, ends: (R,) each.
        """
        self._numbers = np.argsort(starts, kind="stable")
        self._starts, self._ends = starts[self._numbers], ends[self._numbers]
        self._reach = np.maximum.accumulate(self._ends)  # of the ranges up to one

    def overlapping(self, first: int, count: int) -> list[int]:
        """The numbers of the ranges that overlap `[first, first + count)`, ascending."""
        low, high = int(self._reach.searchsorted(first, "right")), int(self._starts.searchsorted(first + count))
        numbers: list[int] = self._numbers[low:high][self._ends[low:high] > first].tolist()
        return sorted(numbers)
