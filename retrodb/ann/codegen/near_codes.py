"""Which rows of lists may be as near to a new vector as a bound says, from their int8 codes alone.

A code is at most half a step away from its value in each dimension. So the distance of the vector that a code stands for gives
the least distance that the row can have. No row that is as near as its bound is missed, and few others are found.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.codegen.dot import dot
from retrodb.ann.codegen.grouping import ListGroups
from retrodb.format.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array

STEP = 0.5001  # the greatest error of a code, in steps
ROUNDING = 1e-5  # the greatest error of a product in float32, relative to the lengths of both vectors


class NewColumns(NamedTuple):
    """New vectors that rows are compared with (C of them)."""

    vectors_CD: Float32Array  # relative to the centre of the codes for the squared distance
    centre_C: Float32Array  # inner product with the centre
    centre_error_C: Float32Array  # the greatest error of that product
    length_C: Float32Array  # of `vectors_CD`
    absolute_C: Float32Array  # sum of the absolute values of `vectors_CD`


class ListSpans(NamedTuple):
    """Positions of consecutive rows of some lists: `starts_P[p]` to `ends_P[p]` belong to list `lists_P[p]`."""

    lists_P: Int32Array
    starts_P: Int64Array
    ends_P: Int64Array


def columns_of(vectors_CD: Float32Array, centre_D: Float32Array, is_l2: bool) -> NewColumns:
    """What `mark_near` needs of new vectors (C, D)."""
    compared_CD = np.ascontiguousarray(vectors_CD - centre_D if is_l2 else vectors_CD)
    return NewColumns(
        compared_CD,
        (vectors_CD @ centre_D).astype(np.float32),
        (ROUNDING * _lengths(vectors_CD) * _lengths(centre_D[None])).astype(np.float32),
        _lengths(compared_CD).astype(np.float32),
        np.abs(compared_CD).sum(axis=1, dtype=np.float64).astype(np.float32),
    )


def _lengths(vectors_ND: Float32Array) -> Float64Array:
    lengths: Float64Array = np.sqrt((vectors_ND.astype(np.float64) ** 2).sum(axis=1))
    return lengths


def mark_near_portable(
    spans: ListSpans,
    groups: ListGroups,
    new: NewColumns,
    codes_ND: NDArray[np.int8],
    scales_N2: Float32Array,
    bounds_B: Float32Array,
    is_l2: bool,
    near_B: BoolArray,
) -> None:
    """The definition of `mark_near`, but for the last bits of a product."""
    at = 0
    for list_, start, end in zip(*(column.tolist() for column in spans), strict=True):
        members = groups.members(list_)
        for position in range(start, end):
            scale, code_D = float(scales_N2[position, 0]), codes_ND[position].astype(np.float32)
            products = new.vectors_CD[members] @ code_D * scale
            length = scale * float(np.sqrt((code_D**2).sum()))
            if is_l2:
                lengths = new.length_C[members] ** 2 + length**2
                squares = lengths - 2 * products - ROUNDING * lengths
                least = np.maximum(np.sqrt(np.maximum(squares, 0)) - STEP * scale * np.sqrt(len(code_D)), 0) ** 2
            else:
                rounding = new.centre_error_C[members] + ROUNDING * new.length_C[members] * length
                least = -(new.centre_C[members] + products) - STEP * scale * new.absolute_C[members] - rounding
            near_B[at] = bool((least <= bounds_B[at]).any())
            at += 1


@compiled
def mark_near(
    spans: ListSpans,
    groups: ListGroups,
    new: NewColumns,
    codes_ND: NDArray[np.int8],
    scales_N2: Float32Array,
    bounds_B: Float32Array,
    is_l2: bool,
    near_B: BoolArray,
) -> None:
    """Marks the rows whose least distance to a new vector that is grouped under their list is at most their bound.

    Args:
        bounds_B: of the rows of the spans, one span after another, as `near_B`.
    """
    lists_P, starts_P, ends_P = spans
    offsets_L1, columns_M = groups
    vectors_CD, centre_C, centre_error_C, length_C, absolute_C = new
    D = codes_ND.shape[1]
    code_D = np.empty(D, dtype=np.float32)
    root_of_dimensions = np.sqrt(np.float32(D))
    at = 0
    for p in range(lists_P.shape[0]):
        first, last = offsets_L1[lists_P[p]], offsets_L1[lists_P[p] + 1]
        for position in range(starts_P[p], ends_P[p]):
            scale, square = scales_N2[position, 0], np.float32(0)
            for d in range(D):
                code_D[d] = codes_ND[position, d]
            for d in range(D):
                square += code_D[d] * code_D[d]
            length = scale * np.sqrt(square)
            is_near = False
            for member in range(first, last):
                c = columns_M[member]
                product = scale * dot(vectors_CD[c], code_D)
                if is_l2:
                    lengths = length_C[c] * length_C[c] + length * length
                    squared = lengths - 2 * product - ROUNDING * lengths
                    least = max(np.sqrt(max(squared, 0.0)) - STEP * scale * root_of_dimensions, 0.0) ** 2
                else:
                    rounding = centre_error_C[c] + ROUNDING * length_C[c] * length
                    least = -(centre_C[c] + product) - STEP * scale * absolute_C[c] - rounding
                if least <= bounds_B[at]:
                    is_near = True
                    break
            near_B[at] = is_near
            at += 1


@compiled
def narrow(spans: ListSpans, order_N: Int64Array, first_row: int, end_row: int) -> None:
    """Narrows the spans of lists, in place, to the rows first_row..end_row of a part: rows are ascending within a list."""
    _, starts_P, ends_P = spans
    for p in range(starts_P.shape[0]):
        start, end = starts_P[p], ends_P[p]
        starts_P[p] = start + np.searchsorted(order_N[start:end], first_row)
        ends_P[p] = start + np.searchsorted(order_N[start:end], end_row)
