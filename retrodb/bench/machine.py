"""The machine and library versions of a measurement, its timing, and cold caches."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from retrodb.encode.threads import available_cpus

Result = TypeVar("Result")
_LIBRARIES = ("retrodb", "faiss-cpu", "faiss-gpu", "torch", "numpy", "numba", "transformers", "tokenizers", "pyarrow")


def environment(threads: int) -> dict[str, str]:
    """Machine, threads and library versions."""
    values = {"python": platform.python_version(), "cpu": cpu_name()}
    values |= {
        "cores": str(available_cpus()),
        "threads": str(threads),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in _LIBRARIES:
        try:
            values[name] = version(name)
        except PackageNotFoundError:
            continue
    return values


def cpu_name() -> str:
    """The model name of the processor, or the best name that the system gives."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gemm_gflops(size: int = 512) -> float:
    """Current rate of a float32 matrix product in 1e9 operations per second, best of five. A busy machine shows a low rate."""
    import torch

    left, right = torch.rand(size, size), torch.rand(size, size)
    return max(2e-9 * size**3 / timed(lambda: left @ right)[1] for _ in range(5))


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of a function and its time in seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def drop_from_page_cache(paths: Iterable[Path]) -> bool:
    """Ask the system to drop files from its page cache. False when the system has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True
