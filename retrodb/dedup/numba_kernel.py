"""How numeric loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile with numba: single-threaded, without the GIL, cached on disk so that a worker starts in milliseconds.

    The cache is next to the module, or in the user's cache folder (or NUMBA_CACHE_DIR) if that folder is read-only. If both
    are read-only, numba refuses to cache, and every process compiles the function itself.
    """
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # "no locator available": no folder for the cache
        return cast(F, numba.njit(nogil=True)(function))
