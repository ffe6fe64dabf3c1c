"""Rows grouped by the lists that they probe, and vectors added up by list."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from retrodb.ann.codegen.compiled import compiled
from retrodb.format.arrays import Float32Array, Float64Array, Int32Array, Int64Array

MAX_ROWS = 1 << 31  # of a block, which has 32-bit row numbers; ids have 64 bits


class ListGroups(NamedTuple):
    """Rows by list: `rows_M[offsets_L1[l]:offsets_L1[l + 1]]` probe list l."""

    offsets_L1: Int64Array
    rows_M: Int32Array

    def members(self, list_: int) -> Int32Array:
        """The rows of one list."""
        return self.rows_M[self.offsets_L1[list_] : self.offsets_L1[list_ + 1]]


def group_by_list_portable(probes_QA: Int32Array, first: int, stop: int, num_lists: int) -> ListGroups:
    """The definition of `group_by_list`."""
    assert stop <= MAX_ROWS
    rows, columns = np.nonzero(probes_QA[first:stop] >= 0)
    lists = probes_QA[first:stop][rows, columns]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=num_lists))])
    return ListGroups(offsets, (first + rows[np.argsort(lists, kind="stable")]).astype(np.int32))


def sum_by_list_portable(lists_N: Int64Array, vectors_ND: Float32Array, sums_LD: Float64Array) -> None:
    """The definition of `sum_by_list`, bit for bit."""
    for list_, vector_D in zip(lists_N, vectors_ND, strict=True):
        sums_LD[list_] += vector_D


@compiled
def group_by_list(probes_QA: Int32Array, first: int, stop: int, num_lists: int) -> ListGroups:
    """The rows first..stop by the lists that they probe (-1: none), ascending within a list."""
    assert stop <= MAX_ROWS
    offsets_L1 = np.zeros(num_lists + 1, dtype=np.int64)
    for q in range(first, stop):
        for a in range(probes_QA.shape[1]):
            offsets_L1[probes_QA[q, a] + 1] += 1  # -1 counts at 0, which is reset below
    offsets_L1[0] = 0
    for list_ in range(num_lists):
        offsets_L1[list_ + 1] += offsets_L1[list_]
    next_L = offsets_L1[:-1].copy()  # where the next row of a list goes
    rows_M = np.empty(offsets_L1[num_lists], dtype=np.int32)
    for q in range(first, stop):
        for a in range(probes_QA.shape[1]):
            list_ = probes_QA[q, a]
            if list_ >= 0:
                rows_M[next_L[list_]] = q
                next_L[list_] += 1
    return ListGroups(offsets_L1, rows_M)


@compiled
def sum_by_list(lists_N: Int64Array, vectors_ND: Float32Array, sums_LD: Float64Array) -> None:
    """Adds each vector to its list's float64 sum, in row order."""
    for row in range(vectors_ND.shape[0]):
        for d in range(vectors_ND.shape[1]):
            sums_LD[lists_N[row], d] += vectors_ND[row, d]
