"""The two metrics, the one convention for distances, and the checks of every array of vectors.

**Distance: smaller is nearer.** For ``squared_l2`` it is the squared Euclidean distance, for ``inner_product`` it is
``-<q, v>``: a negation loses no bits, ``1 - <q, v>`` would. A missing neighbour has id -1 and distance +inf: there is no more.
Where a join ended before it had read all lists, there may be more, and the distance is `CAPPED`. Files and arrays of distances
have this form.

**What users see** is `scores` of `format/scores.py`, under its name: the ``similarity`` <q, v> for ``inner_product`` (greater is
nearer), and the ``squared_distance`` for ``squared_l2`` (smaller is nearer).

Shape legend of the whole folder: N vectors, D dimensions, Q queries, K neighbours, W candidates before the exact
rerank, L lists, A nearest lists kept per vector, J kinds of exclusion keys, C columns (the vectors of one list).
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from retrodb.errors import ConfigError, InputError, MismatchError
from retrodb.format.arrays import Float32Array, VectorArray
from retrodb.format.entries import Metric

NO_NEIGHBOUR = -1
CAPPED = np.finfo(np.float32).max
"""In place of infinity where lists that were not read may have more: beyond every distance of vectors, and finite."""


def check_metric(metric: str) -> None:
    """Raises ConfigError unless `metric` is one of the two."""
    if metric not in get_args(Metric):
        raise ConfigError(f"unknown metric {metric!r}", remedy=f"Use one of {', '.join(get_args(Metric))}")


def check_vectors(vectors_ND: VectorArray, dim: int, first_row: int = 0, where: str | None = None) -> Float32Array:
    """The vectors as contiguous float32, after checking that they are (N, dim) and finite.

    Args:
        first_row: number of the first row, for the message.
        where: what the vectors are, for the message.

    Raises:
        MismatchError: another dimension.
        InputError: NaN or infinity; the message names the first such row.
    """
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
        message = f"vectors of shape {vectors_ND.shape} where {dim} dimensions are needed"
        raise MismatchError(message, where=where, remedy="Encode them with the encoder of this space")
    result = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    finite = np.isfinite(result).all(axis=1)
    if not finite.all():
        row = first_row + int(np.argmin(finite))
        raise InputError(f"row {row} holds NaN or infinity", where=where, remedy="Embed this row again")
    return result
