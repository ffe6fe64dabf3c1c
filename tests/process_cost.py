"""What a command costs: processor time and anonymous memory of its process and of all processes that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from process_tree import process_tree

from retrodb.memory import anonymous_bytes

SAMPLE_S = 0.05


@dataclass(frozen=True)
class ProcessCost:
    """The cost of one command."""

    cpu_s: float  # user and system time of the process and of its children
    elapsed_s: float
    peak_bytes: int  # largest sum of the anonymous memory of all its processes at one time
    error: str = ""  # why it failed; empty for success


def run_measured(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> ProcessCost:
    """Run a command in a new session and measure it. It is killed after `limit_s` seconds."""
    started, peak, usage, status = time.perf_counter(), 0, None, 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=environment, start_new_session=True
        )
        is_late = False
        while usage is None:
            peak = max(peak, sum(map(anonymous_bytes, process_tree(process.pid))))
            if not is_late and time.perf_counter() - started > limit_s:
                is_late = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(SAMPLE_S)
            ended, status, ended_usage = os.wait4(process.pid, os.WNOHANG)
            usage = ended_usage if ended else None
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    error = f"over {limit_s:.0f} s" if is_late else ""
    if process.returncode and not error:
        error = lines[-1] if lines else f"exit code {process.returncode}"
    return ProcessCost(usage.ru_utime + usage.ru_stime, time.perf_counter() - started, peak, error)
