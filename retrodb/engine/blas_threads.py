"""Products of numpy in tasks. A task divides its work between its own threads, so each product takes one.

By itself a BLAS library starts a thread for each core in every process: with two processes on two cores, `index` took three times
the processor time, most of it waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from threading import Lock

import numpy as np
from threadpoolctl import ThreadpoolController


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Makes products of numpy with one thread each, and with as many as before when the last of several blocks ends."""
    _LIMIT.enter()
    try:
        yield
    finally:
        _LIMIT.leave()


class _Limit:
    """The limit is the process's: tasks of several threads share it."""

    def __init__(self) -> None:
        self._lock, self._count, self._limited = Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._count == 0:
                self._limited.enter_context(_library_of_numpy().limit(limits=1))
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._limited.close()


_LIMIT = _Limit()


@lru_cache(maxsize=1)
def _library_of_numpy() -> ThreadpoolController:
    """The library in the packages of numpy. One that PyTorch or FAISS may use is left alone: they are told their threads."""
    np.empty(0)  # which loads it
    return ThreadpoolController().select(prefix="libscipy_openblas")
