"""Runs a command in which NumPy and numba compute as on a processor without AVX2 and AVX-512: `make test-portable`.

python tests/older_processor.py python -m pytest tests/ann
"""

from __future__ import annotations

import os
import sys

from numpy._core import _multiarray_umath as umath

BEYOND_AVX2 = ("X86_V4", "AVX512F", "AVX512CD", "AVX512_SKX", "AVX512_CLX", "AVX512_CNL", "AVX512_ICL", "AVX512_SPR")


def environment() -> dict[str, str]:
    """The variables. NumPy warns of features that it does not dispatch, so only those that it does are named."""
    features = [name for name in BEYOND_AVX2 if name in umath.__cpu_dispatch__ and umath.__cpu_features__.get(name)]
    disabled = {"NPY_DISABLE_CPU_FEATURES": " ".join(features)} if features else {}
    return {**disabled, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


if __name__ == "__main__":
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **environment()})
