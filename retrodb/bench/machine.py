"""What a measurement was made on, and how to make it cold."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from retrodb.encode.threads import available_cpus

R = TypeVar("R")
_LIBRARIES = ("retrodb", "faiss-cpu", "faiss-gpu", "torch", "numpy", "numba", "transformers", "tokenizers", "pyarrow")


def environment(threads: int) -> dict[str, str]:
    """Machine, threads and library versions."""
    found = {"python": platform.python_version(), "cpu": cpu_name()}
    found |= {
        "cores": str(available_cpus()),
        "threads": str(threads),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's own name where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gemm_gflops(size: int = 512) -> float:
    """Rate of a float32 product now, best of five, in 1e9 operations per second: a noisy machine shows here."""
    import torch

    left, right = torch.rand(size, size), torch.rand(size, size)
    return max(2e-9 * size**3 / timed(lambda: left @ right)[1] for _ in range(5))


def timed(work: Callable[[], R]) -> tuple[R, float]:
    """A result and its time in seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def forget(paths: Iterable[Path]) -> bool:
    """Ask the system to drop files from its page cache; False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True
