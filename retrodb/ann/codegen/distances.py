"""The one distance of this project, whose bits depend on the two vectors only, and what is computed with it.

Smaller is nearer: `-<q, v>` for the inner product, `|q - v|²` for squared L2, both by `dot`.
"""

from __future__ import annotations

import numpy as np

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.codegen.dot import dot, dot_portable
from retrodb.format.arrays import Float32Array, Int64Array


def distance_portable(a_D: Float32Array, b_D: Float32Array, is_l2: bool) -> np.float32:
    """The distance of two vectors: the definition of `distance`, bit for bit."""
    return dot_portable(a_D - b_D, a_D - b_D) if is_l2 else -dot_portable(a_D, b_D)


def fixed_distances_portable(
    queries_QD: Float32Array, rows_QW: Int64Array, vectors_UD: Float32Array, is_l2: bool, distances_QW: Float32Array
) -> None:
    """The definition of `fixed_distances`, bit for bit."""
    for q, w in np.argwhere(rows_QW >= 0):
        distances_QW[q, w] = distance_portable(queries_QD[q], vectors_UD[rows_QW[q, w]], is_l2)


def fixed_affine_portable(inputs_ND: Float32Array, matrix_MD: Float32Array, bias_M: Float32Array) -> Float32Array:
    """The definition of `fixed_affine`, bit for bit."""
    products_NM = [[dot_portable(input_D, row_D) for row_D in matrix_MD] for input_D in inputs_ND]
    return np.array(products_NM, dtype=np.float32).reshape(len(inputs_ND), len(matrix_MD)) + bias_M


@compiled
def distance(a_D: Float32Array, b_D: Float32Array, difference_D: Float32Array, is_l2: bool) -> np.float32:
    """The distance of two vectors, inside kernels; `difference_D` is scratch."""
    if not is_l2:
        return -dot(a_D, b_D)
    for d in range(a_D.shape[0]):
        difference_D[d] = a_D[d] - b_D[d]
    return dot(difference_D, difference_D)


@compiled
def fixed_distances(
    queries_QD: Float32Array, rows_QW: Int64Array, vectors_UD: Float32Array, is_l2: bool, distances_QW: Float32Array
) -> None:
    """Fills in the distances of each query to its candidates, which are rows of `vectors_UD`; -1 is none."""
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    for q in range(rows_QW.shape[0]):
        for w in range(rows_QW.shape[1]):
            if rows_QW[q, w] >= 0:
                distances_QW[q, w] = distance(queries_QD[q], vectors_UD[rows_QW[q, w]], difference_D, is_l2)


@compiled
def fixed_affine(
    inputs_ND: Float32Array, matrix_MD: Float32Array, bias_M: Float32Array, outputs_NM: Float32Array
) -> None:
    """Fills in `inputs @ matrix.T + bias` by `dot`; the bits of a BLAS product would depend on the batch."""
    for n in range(inputs_ND.shape[0]):
        for m in range(matrix_MD.shape[0]):
            outputs_NM[n, m] = dot(inputs_ND[n], matrix_MD[m]) + bias_M[m]
