"""The nearest lists of vectors through groups of lists: a vector is compared with the lists of its nearest groups only.

What comes out depends on the vector, not on its batch: groups and lists are chosen by the exact distance kernel.

Legend: N vectors, D dimensions, G groups, L lists, P groups probed, A nearest lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from retrodb.ann.codegen.grouping import group_by_list
from retrodb.ann.exact import FixedRows
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import Float32Array, Int64Array
from retrodb.format.entries import Metric

BLOCK_ROWS = 1 << 16  # vectors that are grouped together: so many that each group has work for a matrix product
# Groups that are probed for the nearest list. 16 find it for 99.7% of the vectors of text, in 4,096 to 65,536 lists.
PROBED_GROUPS = 16
# For more lists, the groups grow by this power of their number: 38 for 32 lists, 54 for 128. Of 181 or 256 groups, 48 find
# at least 99.7% of the neighbours that a scan of so many exact lists finds.
PROBED_POWER = 0.25
FEW_ROWS = 8  # for so few vectors, the lists of all probed groups of one are one product


@dataclass(frozen=True)
class GroupedLists:
    """Lists in groups: those of group g are at the positions `offsets_G1[g]` to `offsets_G1[g + 1]`."""

    groups: FixedRows  # centroids of the groups
    centroids_LD: Float32Array
    offsets_G1: Int64Array
    probed: int  # groups that are probed for the nearest list
    numbers_L: Int64Array  # of the lists, ascending

    @classmethod
    def of(
        cls,
        groups_GD: Float32Array,
        centroids_LD: Float32Array,
        sizes_G: Sequence[int] | Int64Array,
        probed: int = PROBED_GROUPS,
    ) -> GroupedLists:
        """Groups of so many lists each, which follow each other."""
        offsets_G1 = np.concatenate([[0], np.cumsum(sizes_G, dtype=np.int64)])
        return cls(FixedRows.of(groups_GD), centroids_LD, offsets_G1, probed, np.arange(len(centroids_LD)))

    def within(self, lists: Int64Array) -> GroupedLists:
        """Some of the lists, ascending, in the groups that have one of them."""
        positions = np.searchsorted(self.numbers_L, lists)
        sizes_G = np.diff(np.searchsorted(positions, self.offsets_G1))
        is_filled_G = sizes_G > 0
        groups = FixedRows.of(self.groups.columns.vectors_CD[is_filled_G])
        offsets = np.concatenate([[0], np.cumsum(sizes_G[is_filled_G])])
        return GroupedLists(groups, self.centroids_LD[positions], offsets, self.probed, lists)

    def __len__(self) -> int:
        """The number of groups."""
        return len(self.groups.lengths_C)

    def nearest(self, vectors_ND: Float32Array, count: int, metric: Metric, threads: int = 1) -> Int64Array:
        """(N, count) the nearest lists by closeness, through as many groups as so many lists need."""
        return self.nearest_in(vectors_ND, count, self.groups_for(count), metric, threads)

    def groups_for(self, count: int) -> int:
        """How many groups are probed for so many lists."""
        wanted: float = self.probed * float(count) ** PROBED_POWER
        return min(len(self), math.ceil(wanted))

    def nearest_in(
        self, vectors_ND: Float32Array, count: int, probed: int, metric: Metric, threads: int = 1
    ) -> Int64Array:
        """(N, count) the nearest lists by closeness among those of the `probed` nearest groups.

        More groups are probed where fewer could hold less than `count` lists. -1 where there are no more lists at all.
        """
        count_of_all = min(count, len(self.centroids_LD))
        least = int(np.searchsorted(self._fewest_lists_G, count_of_all)) + 1
        probed = min(max(probed, least), len(self))
        blocks = [
            self._nearest_of_block(vectors_ND[start : start + BLOCK_ROWS], count, probed, metric, threads)
            for start in range(0, max(len(vectors_ND), 1), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)

    @cached_property
    def _fewest_lists_G(self) -> Int64Array:
        """The lists that any 1, 2, .. groups have at least."""
        fewest_G: Int64Array = np.cumsum(np.sort(np.diff(self.offsets_G1)))
        return fewest_G

    @cached_property
    def _lists_of_group(self) -> list[FixedRows]:
        return [
            FixedRows.of(self.centroids_LD[start:stop], self.numbers_L[start:stop])
            for start, stop in pairwise(self.offsets_G1.tolist())
        ]

    def _nearest_of_block(
        self, vectors_ND: Float32Array, count: int, probed: int, metric: Metric, threads: int
    ) -> Int64Array:
        probed_NP = self.groups.nearest(vectors_ND, probed, metric, threads).astype(np.int32)
        best = empty_topk(len(vectors_ND), count)
        if len(vectors_ND) <= FEW_ROWS:
            for row, probed_P in enumerate(np.sort(probed_NP, axis=1)):
                self._merge_lists_of(
                    probed_P, vectors_ND[row : row + 1], (best[0][row : row + 1], best[1][row : row + 1]), metric
                )
            return best[0]
        # The nearest group first: its lists are near, so most of those of the others need no exact distance.
        for columns_NP in (probed_NP[:, :1], probed_NP[:, 1:]):
            rows_by_group = group_by_list(columns_NP, 0, len(columns_NP), len(self._lists_of_group))
            for group, lists in enumerate(self._lists_of_group):
                rows = rows_by_group.members(group)
                if len(rows) and len(lists.lengths_C):
                    of_rows = best[0][rows], best[1][rows]
                    lists.merge_into(of_rows, vectors_ND[rows], metric, threads)
                    best[0][rows], best[1][rows] = of_rows
        return best[0]

    def _merge_lists_of(self, groups_P: Int64Array, vector: Float32Array, best: TopK, metric: Metric) -> None:
        """Merge the lists of some groups, in the order of their numbers, into the best of one vector."""
        lists = np.concatenate([np.arange(*self.offsets_G1[group : group + 2]) for group in groups_P.tolist()])
        FixedRows.of(self.centroids_LD[lists], self.numbers_L[lists]).merge_into(best, vector, metric)
