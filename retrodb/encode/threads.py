"""Thread settings that must be made before torch is imported, so this module does not import it."""

from __future__ import annotations

import os


def thread_environment() -> dict[str, str]:
    """Environment variables of a worker process, set before torch is imported.

    Waiting threads sleep instead of spinning: next to another busy process this doubled the rate of two threads. Tokenizing
    runs in separate processes, and each needs no threads.
    """
    return {
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def available_cpus() -> int:
    """Cores that this process may use. In a container these are fewer than the cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
