"""Products of numpy in tasks. A task divides its work between its own threads, so each product takes one.

By itself a BLAS library starts a thread for each core in every process: with two processes on two cores, `index` took three times
the processor time, most of it waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from threadpoolctl import ThreadpoolController


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Makes products of numpy with one thread each, then with as many as before."""
    with _library_of_numpy().limit(limits=1):
        yield


@lru_cache(maxsize=1)
def _library_of_numpy() -> ThreadpoolController:
    """The library in the packages of numpy. One that PyTorch or FAISS may use is left alone: they are told their threads."""
    np.empty(0)  # which loads it
    return ThreadpoolController().select(prefix="libscipy_openblas")
