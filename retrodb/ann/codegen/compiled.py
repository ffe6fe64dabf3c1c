"""The decorator of all kernels in this package.

numba keeps compiled code in a cache file for each source file, and checks the date of that file only. After a change to a
kernel that others call, delete the callers' cache files (`__pycache__/*.nb?`). An installed release needs no such care: all
of its files are new.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

from retrodb.ann.codegen.llvm import NumbaObject
from retrodb.dedup.kernel import kernel

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The decorator that `dedup` uses, too, and a cache that survives a renamed class of arguments.

    The cache's index is a pickle that names the classes of arguments, our named tuples. When one of them is renamed or
    moved in a new version, numba would fail to read the index before it compares dates.
    """
    dispatcher: NumbaObject = kernel(function)
    index = getattr(dispatcher._cache, "_cache_file", None)  # None where there is no folder for a cache
    if index is not None:
        index._load_index = _or_empty(index._load_index)
    result: F = dispatcher
    return result


def _or_empty(load_index: Callable[[], dict[object, str]]) -> Callable[[], dict[object, str]]:
    """The same with an index that cannot be read taken for an empty one, which numba then overwrites."""

    def load() -> dict[object, str]:
        try:
            return load_index()
        except (AttributeError, ImportError, TypeError, pickle.UnpicklingError):
            return {}

    return load
