"""float16 rows gathered as float32, and checked for NaN and infinity, in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrodb.ann.codegen.compiled import compiled
from retrodb.format.arrays import Float32Array, Int64Array

_SIGN, _REST, _EXPONENT = -0x8000, 0x7FFF, 0x7C00  # bits of a float16 that was widened to int32


def gather_halves_portable(halves_ND: NDArray[np.int16], rows_R: Int64Array, out_RD: Float32Array) -> int:
    """The definition of `gather_halves`; `out_RD` is the same up to the first row that is not finite."""
    out_RD[:] = halves_ND[rows_R].view(np.float16)
    is_bad_R = ~np.isfinite(out_RD).all(axis=1)
    return int(np.argmax(is_bad_R)) if is_bad_R.any() else -1


@compiled
def gather_halves(halves_ND: NDArray[np.int16], rows_R: Int64Array, out_RD: Float32Array) -> int:
    """Fills `out_RD` with rows of float16 bits (int16) as float32.

    The bits of a float16, moved to where a float32 has its exponent and fraction, are its value times 2^-112 (the biases
    of the exponents are 15 and 127), for subnormal numbers too.

    Returns:
        The position in `rows_R` of the first row with NaN or infinity, where the work ends, or -1.
    """
    bits_RD = out_RD.view(np.int32)
    for r in range(rows_R.shape[0]):
        halves, bits, out = halves_ND[rows_R[r]], bits_RD[r], out_RD[r]
        is_bad = np.int32(0)
        for d in range(out.shape[0]):
            half = np.int32(halves[d])
            bits[d] = (half & np.int32(_SIGN)) << np.int32(16) | (half & np.int32(_REST)) << np.int32(13)
            is_bad |= np.int32((half & np.int32(_EXPONENT)) == np.int32(_EXPONENT))
        if is_bad:
            return r
        for d in range(out.shape[0]):
            out[d] *= np.float32(2.0**112)
    return -1
