"""How the numeric loops of this folder are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile with numba: single-threaded, without the GIL, kept on disk so that a worker starts in milliseconds.

    numba keeps the code beside the module, or where that is read-only in the user's cache folder (or NUMBA_CACHE_DIR).
    Where neither can be written it refuses to cache at all; then every process compiles for itself.
    """
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # "no locator available": nowhere to keep it
        return cast(F, numba.njit(nogil=True)(function))
