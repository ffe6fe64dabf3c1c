"""Threads: what must be settled before torch is imported, so this module imports nothing."""

from __future__ import annotations

import os


def thread_environment() -> dict[str, str]:
    """Settings for a worker's environment, before torch is imported.

    Waiting threads sleep instead of spinning: beside another busy process that doubled the rate of two threads. Tokenizing has
    processes of its own and needs no threads within.
    """
    return {
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def available_cpus() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
