"""The decorator of all numeric kernels: how numba compiles them, and where the compiled code is cached.

numba checks only the date of a kernel's own source file. After a change to a kernel that other modules call, delete the cache
files of these modules (`__pycache__/*.nb?`). An installed release needs no such care, because all of its files are new.
"""

from __future__ import annotations

import pickle
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
        dispatcher = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "no locator available": no folder for the cache
        return cast(F, numba.njit(nogil=True)(function))
    # The index of the cache is a pickle that contains the named tuples of a kernel's arguments. If one was renamed in a
    # new version, numba would fail to read the index before it compares the dates.
    index = dispatcher._cache._cache_file  # type: ignore[attr-defined]
    index._load_index = _empty_if_unreadable(index._load_index)
    return cast(F, dispatcher)


def _empty_if_unreadable(load_index: Callable[[], dict[object, str]]) -> Callable[[], dict[object, str]]:
    """The same function, but an index that cannot be read is empty, so that numba writes a new one."""

    def load() -> dict[object, str]:
        try:
            return load_index()
        except (AttributeError, ImportError, TypeError, pickle.UnpicklingError):
            return {}

    return load
