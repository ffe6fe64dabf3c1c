"""Vectors from the int8 codes of an index part, for spaces that keep no vectors.

A part holds its codes in the order of its lists (see `ann/part.py`); a row's vector is its code times its scale, plus the
centre. About 0.99 of a vector's ten nearest stay the same; the index entry of such a space has the measured figure,
`codes_recall`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retrodb.format.arrays import Float32Array, Int64Array
from retrodb.format.part_files import CODE_FILES
from retrodb.store.verified_array import VerifiedArray


class PartCodes:
    """The codes of one part, memory-mapped."""

    def __init__(self, files: Mapping[str, VerifiedArray]) -> None:
        """
        Args:
            files: those of `CODE_FILES` by name.
        """
        codes, order, scales, centre = (files[name] for name in CODE_FILES)
        self._codes_ND, self._scales_N2, self._centre_D = codes, scales, centre.whole()
        self._position_N = np.empty(len(order), dtype=np.int64)  # of each row in the order of the lists
        self._position_N[order.whole()] = np.arange(len(order))

    def vectors(self, rows: Int64Array) -> Float32Array:
        """(n, D) float32 of rows of the part."""
        positions = self._position_N[rows]
        vectors: Float32Array = self._codes_ND[positions].astype(np.float32) * self._scales_N2[positions, :1]
        return vectors + self._centre_D
