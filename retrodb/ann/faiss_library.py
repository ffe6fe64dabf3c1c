"""FAISS: its import, its threads, and the names of its types.

FAISS ships type stubs in some versions only, and they do not know what a SWIG downcast gives. So its objects are `Any` to
mypy, under the two names here and nowhere else in this folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

from retrodb.errors import MissingDependency

FaissIndex: TypeAlias = Any  # faiss.Index, or a class below it after a downcast
FaissObject: TypeAlias = Any  # lists, packers, search parameters, row filters, pointers


def faiss_module() -> ModuleType:
    """FAISS, imported at first use.

    Raises:
        MissingDependency: neither extra is installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "FAISS is not installed", remedy="pip install 'retrodb[cpu]', or 'retrodb[gpu]' on a machine with a GPU"
        ) from error
    module: ModuleType = faiss
    return module


@contextmanager
def one_faiss_thread() -> Iterator[None]:
    """Runs FAISS with one thread, then restores its threads: what it trains and builds must not depend on their number."""
    threads = faiss_module().omp_get_max_threads()
    faiss_module().omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss_module().omp_set_num_threads(threads)
