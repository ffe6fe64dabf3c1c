"""Where the products are computed and in which format, and how fast this machine can compute them at best."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from retrodb.encode.batching import GPU_WINDOW_ROWS, WINDOW_ROWS
from retrodb.encode.threads import available_cpus
from retrodb.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Tokens of a batch. CPU: the widest activations of BERT-base are then 25 MB in fp32, below the size from which malloc gives
# memory back to the system each time. GPU: large enough to fill the matrix units.
CPU_BATCH_TOKENS = 2_048
GPU_BATCH_TOKENS = 65_536


@dataclass(frozen=True)
class Compute:
    """The device and number format in which a model is computed."""

    device: str  # cpu, cuda:0, mps
    dtype: str  # a key of DTYPES
    threads: int  # batches at once, on a CPU
    batch_tokens: int  # token budget of a batch

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def window_rows(self) -> int:
        """Rows to be grouped by length at once; large enough on a GPU that rare lengths fill a batch, too."""
        return GPU_WINDOW_ROWS if self.is_cuda else WINDOW_ROWS


def choose_compute(
    device: str = "auto", dtype: str = "auto", *, batch_tokens: int | None = None, threads: int | None = None
) -> Compute:
    """The best device and format of this machine, or the ones asked for.

    Raises:
        UsageError: they are not there, or not known.
    """
    device = _choose_device(device)
    if dtype == "auto":
        fast_bf16 = device.startswith("cuda") or (device == "cpu" and has_fast_bfloat16())
        dtype = "bfloat16" if fast_bf16 else "float32"
    if dtype not in DTYPES:
        raise UsageError(f"unknown compute dtype '{dtype}'", remedy=f"Use auto or one of {', '.join(DTYPES)}.")
    default_tokens = GPU_BATCH_TOKENS if device.startswith("cuda") else CPU_BATCH_TOKENS
    batch_tokens = default_tokens if batch_tokens is None else batch_tokens
    threads = available_cpus() if threads is None else threads
    if batch_tokens < 1 or threads < 1:
        raise UsageError(
            f"a token budget of {batch_tokens} on {threads} threads computes nothing", remedy="Use 1 or more."
        )
    return Compute(device, dtype, threads, batch_tokens)


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if device in ("cpu", "mps") or (kind == "cuda" and (not index or index.isdecimal())):
        number = int(index or 0)
        is_there = {
            "cpu": True,
            "mps": torch.backends.mps.is_available(),
            "cuda": torch.cuda.is_available() and number < torch.cuda.device_count(),
        }
        if is_there[kind]:
            return f"cuda:{number}" if kind == "cuda" else device
        raise UsageError(f"there is no device '{device}' on this machine", remedy="Use --device auto or --device cpu.")
    raise UsageError(f"unknown device '{device}'", remedy="Use auto, cpu, cuda, cuda:1 or mps.")


def num_gpus(device: str) -> int:
    """The GPUs that embedding may share its tasks among: all of them, unless the device names one or is another."""
    return max(1, torch.cuda.device_count()) if device in ("auto", "cuda") and torch.cuda.is_available() else 1


def has_fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 natively; elsewhere it is slower than float32."""
    if not cpuinfo.is_file():
        return False
    flags = cpuinfo.read_text(errors="replace").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def measure_matrix_rate(compute: Compute, *, size: int | None = None, repeats: int = 10) -> float:
    """FLOP/s of a large square product on this device: what a model can at most reach here. The best of `repeats`."""
    size = size or (8192 if compute.is_cuda else 1024)
    left, right = (torch.randn(size, size, device=compute.device).to(DTYPES[compute.dtype]) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(compute.threads)
    fastest = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        _wait_for(compute)
        start = time.perf_counter()
        left @ right
        _wait_for(compute)
        fastest = min(fastest, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * size**3 / fastest


def _wait_for(compute: Compute) -> None:
    if compute.is_cuda:
        torch.cuda.synchronize(compute.device)
    elif compute.device == "mps":
        torch.mps.synchronize()
