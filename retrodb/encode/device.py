"""The device and number format of the computation, and the highest rate that the device can reach."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from retrodb.encode.batching import GPU_WINDOW_ROWS, WINDOW_ROWS
from retrodb.encode.threads import available_cpus
from retrodb.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Tokens of a batch. CPU: the largest activations of BERT-base have 25 MB in fp32, below the size at which malloc returns
# memory to the system after each use. GPU: large enough to fill the matrix units.
CPU_BATCH_TOKENS = 2_048
GPU_BATCH_TOKENS = 65_536


@dataclass(frozen=True)
class Compute:
    """The device and number format with which a model is computed."""

    device: str  # cpu, cuda:0, mps
    dtype: str  # a key of DTYPES
    threads: int  # batches that a CPU computes in parallel
    batch_tokens: int  # maximum number of tokens in a batch

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def window_rows(self) -> int:
        """Rows that are grouped by length together. On a GPU there are enough for full batches of rare lengths."""
        return GPU_WINDOW_ROWS if self.is_cuda else WINDOW_ROWS


def choose_compute(
    device: str = "auto", dtype: str = "auto", *, batch_tokens: int | None = None, threads: int | None = None
) -> Compute:
    """The given device and format, or the best ones of this machine for "auto".

    Raises:
        UsageError: they are unknown, or not available on this machine.
    """
    device = _choose_device(device)
    if dtype == "auto":
        is_bf16_fast = device.startswith("cuda") or (device == "cpu" and has_fast_bfloat16())
        dtype = "bfloat16" if is_bf16_fast else "float32"
    if dtype not in DTYPES:
        raise UsageError(f"unknown compute dtype '{dtype}'", remedy=f"Use auto or one of {', '.join(DTYPES)}.")
    default_tokens = GPU_BATCH_TOKENS if device.startswith("cuda") else CPU_BATCH_TOKENS
    batch_tokens = default_tokens if batch_tokens is None else batch_tokens
    threads = available_cpus() if threads is None else threads
    if batch_tokens < 1 or threads < 1:
        raise UsageError(f"{batch_tokens} tokens per batch with {threads} threads is invalid", remedy="Use 1 or more.")
    return Compute(device, dtype, threads, batch_tokens)


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if device in ("cpu", "mps") or (kind == "cuda" and (not index or index.isdecimal())):
        number = int(index or 0)
        is_available = {
            "cpu": True,
            "mps": torch.backends.mps.is_available(),
            "cuda": torch.cuda.is_available() and number < torch.cuda.device_count(),
        }
        if is_available[kind]:
            return f"cuda:{number}" if kind == "cuda" else device
        raise UsageError(f"there is no device '{device}' on this machine", remedy="Use --device auto or --device cpu.")
    raise UsageError(f"unknown device '{device}'", remedy="Use auto, cpu, cuda, cuda:1 or mps.")


def num_gpus(device: str) -> int:
    """The number of GPUs for embedding tasks: all GPUs, or 1 if the device is one GPU or not a GPU."""
    return max(1, torch.cuda.device_count()) if device in ("auto", "cuda") and torch.cuda.is_available() else 1


def has_fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has bfloat16 products. Without them, bfloat16 is slower than float32."""
    if not cpuinfo.is_file():
        return False
    flags = cpuinfo.read_text(errors="replace").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def measure_matrix_rate(compute: Compute, *, size: int | None = None, repeats: int = 10) -> float:
    """FLOP/s of a large square product: the highest rate that a model can reach on this device. Best of `repeats`."""
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
