"""Vectors as codes of 6 bits: integers from -31 to 31 with one scale a vector, relative to a centre.

Text embeddings share a large mean. The codes are of the differences from a centre, so that the 6 bits describe what
distinguishes the vectors. With v = centre + v' and q = centre + q', up to what is constant for a query:

    -<q, v>   =  -<centre, v'> - <q', v'>
    |q - v|²  =        |v'|² - 2 <q', v'>

So a distance is `norm - weight * scale * product`, where the norm and the scale belong to the column, the weight belongs
to the query, and the product is that of the codes.

Legend: Q queries, D dimensions; codes have D padded with zeros to a multiple of `GROUP_DIMS`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from retrodb.ann.codegen.compiled import compiled
from retrodb.format.arrays import ByteArray, Float32Array

LEVELS = 31  # 6 bits: codes from -31 to 31
GROUP_DIMS = 32  # `code_product` adds up this many dimensions in 16 bits


class CodeSpace(NamedTuple):
    """What codes are relative to, and the metric of their distances."""

    centre_D: Float32Array
    is_l2: bool


class QueryCodes(NamedTuple):
    """Codes of queries, unsigned: `LEVELS` is added to them, because AVX2 multiplies unsigned by signed bytes."""

    codes_QD: ByteArray
    weights_Q: Float32Array  # the scale, doubled for squared L2


def encode_vector_portable(vector_D: Float32Array) -> tuple[NDArray[np.int8], np.float32]:
    """The codes of a finite vector and their scale: the definition of `encode_vector`, bit for bit."""
    largest = np.float32(np.abs(vector_D).max(initial=0))
    if largest == 0:
        return np.zeros(len(vector_D), dtype=np.int8), largest
    return np.rint(vector_D * (np.float32(LEVELS) / largest)).astype(np.int8), largest / np.float32(LEVELS)


def encode_queries_portable(queries_QD: Float32Array, space: CodeSpace) -> QueryCodes:
    """The definition of `encode_queries`, bit for bit."""
    codes = empty_query_codes(*queries_QD.shape)
    for q, query_D in enumerate(queries_QD):
        signed_D, scale = encode_vector_portable(query_D - space.centre_D)
        codes.codes_QD[q] = LEVELS
        codes.codes_QD[q, : len(signed_D)] += signed_D.view(np.uint8)
        codes.weights_Q[q] = scale * np.float32(2 if space.is_l2 else 1)
    return codes


def padded_dims(dim: int) -> int:
    """Dimensions of codes for vectors of `dim`."""
    return -(-dim // GROUP_DIMS) * GROUP_DIMS


def empty_query_codes(num_queries: int, dim: int) -> QueryCodes:
    """Room for the codes of queries of `dim` dimensions."""
    return QueryCodes(np.empty((num_queries, padded_dims(dim)), np.uint8), np.empty(num_queries, np.float32))


# Without NaN a maximum is the same in any order, so the compiler may use the machine's registers for it.
@numba.njit(nogil=True, fastmath={"nnan", "nsz"})
def encode_vector(vector_D: Float32Array, codes_D: NDArray[np.int8]) -> np.float32:
    """Fills in the codes of a finite vector and gives their scale; inside kernels."""
    largest = np.float32(0)
    for d in range(vector_D.shape[0]):
        largest = max(largest, abs(vector_D[d]))
    if largest == 0:
        codes_D[:] = 0
        return largest
    inverse = np.float32(LEVELS) / largest
    for d in range(vector_D.shape[0]):
        codes_D[d] = np.int8(np.rint(vector_D[d] * inverse))
    return largest / np.float32(LEVELS)


@compiled
def encode_queries(first: int, stop: int, queries_QD: Float32Array, space: CodeSpace, codes: QueryCodes) -> None:
    """Fills in the codes and weights of queries first..stop."""
    dim = queries_QD.shape[1]
    difference_D = np.empty(dim, dtype=np.float32)
    signed_D = np.zeros(codes.codes_QD.shape[1], dtype=np.int8)
    for q in range(first, stop):
        for d in range(dim):
            difference_D[d] = queries_QD[q, d] - space.centre_D[d]
        codes.weights_Q[q] = encode_vector(difference_D, signed_D) * np.float32(2 if space.is_l2 else 1)
        for d in range(signed_D.shape[0]):
            codes.codes_QD[q, d] = signed_D[d] + LEVELS
