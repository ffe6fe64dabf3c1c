"""Copies the token ids of a window to the device, computes its batches, and copies the vectors to the host.

On a GPU the ids of a whole window are uploaded in one copy, and its vectors are downloaded in one copy. Both use pinned memory
and separate streams: while one window is computed, the ids of the next window are uploaded and the vectors of the last window
are downloaded. Batches are cut on the device, so a batch needs no copy.

On a CPU one thread computes a whole batch, and there are as many parallel batches as threads. A product is never split among
threads, so its bits do not depend on their number, and no thread waits for another thread between two layers.

Shapes: N rows of a window, T tokens of a window, B rows of a batch, L tokens each, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from retrodb.encode.batching import BatchPlan, EqualLengthBatch
from retrodb.encode.device import Compute
from retrodb.format.arrays import AnyArray, Float16Array, Int64Array, TokenArray

# Without the attention of cuDNN, which newer versions of PyTorch prefer on a Hopper GPU. It prepares every new shape of a
# batch, and with hundreds of shapes per window MiniLM was three times slower.
GPU_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class InFlight:
    """A window that is being computed."""

    order_N: Int64Array
    sorted_ND: Tensor  # float16 on the host, rows as in order_N; complete after `done`
    done: torch.cuda.Event | None  # None if it is already complete


class Pipeline:
    """Computes windows one after the other: `start` the next window, then `finish` the window before it."""

    def __init__(self, model: Callable[[Tensor], Tensor], dimension: int, compute: Compute) -> None:
        """`model` gives pooled vectors (B, D) for ids (B, L) int32 on the device."""
        self.model, self.dimension, self.compute = model, dimension, compute
        if compute.is_cuda:
            self.computing = torch.cuda.current_stream(compute.device)
            self.upload_stream: torch.cuda.Stream = torch.cuda.Stream(compute.device)  # type: ignore[no-untyped-call]
            self.download_stream: torch.cuda.Stream = torch.cuda.Stream(compute.device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def start(self, ids_T: TokenArray, offsets: Int64Array, plan: BatchPlan) -> InFlight:
        """Start computing a window. On a GPU this returns before the work is done.

        Args:
            ids_T: uint16 or uint32 token ids of all rows.
            offsets: (N + 1,), row i is ids_T[offsets[i]:offsets[i + 1]].

        Raises:
            torch.OutOfMemoryError: the window can be started again with another plan.
        """
        starts_N = self._upload(offsets[:-1][plan.order_N])
        # The same bits as a signed type, which all devices can index and copy.
        words_T = self._upload(ids_T.view(np.int16 if ids_T.dtype == np.uint16 else np.int32))
        if self.compute.is_cuda:
            self.computing.wait_stream(self.upload_stream)
        sorted_ND = torch.empty((len(plan.order_N), self.dimension), dtype=torch.float16, device=self.compute.device)

        @torch.inference_mode()  # a setting of each thread
        def run(batch: EqualLengthBatch) -> None:
            columns = torch.arange(batch.length, device=words_T.device)
            ids_BL = words_T[starts_N[batch.start : batch.stop, None] + columns].to(torch.int32)
            if words_T.dtype == torch.int16:
                ids_BL &= 0xFFFF
            sorted_ND[batch.start : batch.stop] = self.model(ids_BL)

        with sdpa_kernel(GPU_ATTENTION) if self.compute.is_cuda else nullcontext():
            self._run_all(run, plan.batches)
        return self._download(plan.order_N, sorted_ND)

    def finish(self, window: InFlight) -> Float16Array:
        """The vectors of the window (N, D), in the order of its rows."""
        if window.done is not None:
            window.done.synchronize()
        vectors_ND = np.empty(window.sorted_ND.shape, np.float16)
        vectors_ND[window.order_N] = window.sorted_ND.numpy()
        return vectors_ND

    def _run_all(self, run: Callable[[EqualLengthBatch], None], batches: tuple[EqualLengthBatch, ...]) -> None:
        if self.compute.device != "cpu":
            for batch in batches:
                run(batch)
            return
        with ThreadPoolExecutor(self.compute.threads, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            for _ in threads.map(run, batches):  # raises the errors of batches
                pass

    def _upload(self, array: AnyArray) -> Tensor:
        host = torch.from_numpy(array.copy())  # a copy, because torch does not support read-only arrays
        if not self.compute.is_cuda:
            return host.to(self.compute.device)
        with torch.cuda.stream(self.upload_stream):
            device = host.pin_memory().to(self.compute.device, non_blocking=True)
        device.record_stream(self.computing)  # so its memory is not reused before the computing stream has read it
        return device

    def _download(self, order_N: Int64Array, sorted_ND: Tensor) -> InFlight:
        if not self.compute.is_cuda:
            return InFlight(order_N, sorted_ND.cpu(), None)
        host = torch.empty(sorted_ND.shape, dtype=torch.float16, pin_memory=True)
        self.download_stream.wait_stream(self.computing)
        with torch.cuda.stream(self.download_stream):
            host.copy_(sorted_ND, non_blocking=True)
            done = self.download_stream.record_event()
        sorted_ND.record_stream(self.download_stream)
        return InFlight(order_N, host, done)


def pool(hidden_BLD: Tensor, mode: str, *, leading: int = 0, trailing: int = 0) -> Tensor:
    """One float32 vector per row (B, D), pooled over its tokens without the first `leading` and last `trailing` tokens.

    A row that has only special tokens is pooled over all of them, so every text has a vector.
    """
    if mode == "cls":  # the first token, for every span
        return hidden_BLD[:, 0].float()
    length = hidden_BLD.shape[1]
    if length > leading + trailing:
        hidden_BLD = hidden_BLD[:, leading : length - trailing]
    if mode == "max":
        return hidden_BLD.amax(1).float()
    mean_BD = hidden_BLD.mean(1, dtype=torch.float32)
    return mean_BD if mode == "mean" else mean_BD * hidden_BLD.shape[1] ** 0.5
