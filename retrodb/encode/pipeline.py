"""How the batches of a window reach the device, and its vectors the host.

On a GPU the ids of a whole window go up in one copy and its vectors come down in one, both through pinned memory on streams of
their own: while one window is computed, the next one's ids arrive and the last one's vectors leave. Batches are cut out on
the device, so that a batch costs no copy.

On a CPU each batch is computed by one thread, and as many batches at once as there are threads: a product is never split
among threads, so that its bits cannot depend on their number, and no thread waits for another between two layers.

Shapes: N rows of a window, T tokens of a window, B rows of a batch, L tokens each, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from retrodb.encode.batching import Batch, BatchPlan
from retrodb.encode.device import Compute

# Without cuDNN's attention, which newer versions of PyTorch prefer on a Hopper GPU: it prepares every shape of a batch anew, and
# hundreds of shapes a window made MiniLM three times as slow.
GPU_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class InFlight:
    """A window whose vectors are being computed."""

    order_N: npt.NDArray[np.int64]
    sorted_ND: Tensor  # float16 on the host, rows as in order_N; complete when `done` has happened
    done: Any  # torch.cuda.Event; None when it is complete already


class Pipeline:
    """Computes windows one after the other: `start` the next one, then `finish` the one before."""

    def __init__(self, model: Callable[[Tensor], Tensor], dimension: int, compute: Compute) -> None:
        """`model` gives pooled vectors (B, D) for ids (B, L) int32 on the device."""
        self.model, self.dimension, self.compute = model, dimension, compute
        if compute.is_cuda:
            self.computing = torch.cuda.current_stream(compute.device)
            self.up: Any = torch.cuda.Stream(compute.device)  # type: ignore[no-untyped-call]
            self.down: Any = torch.cuda.Stream(compute.device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def start(self, ids_T: npt.NDArray[Any], offsets: npt.NDArray[np.int64], plan: BatchPlan) -> InFlight:
        """Puts a window to work; on a GPU it returns before the work is done.

        Args:
            ids_T: uint16 or uint32 token ids of all rows.
            offsets: (N + 1,), row i is ids_T[offsets[i]:offsets[i + 1]].

        Raises:
            torch.OutOfMemoryError: the window can be started again with another plan.
        """
        starts_N = self._upload(offsets[:-1][plan.order_N])
        # The same bits as a signed type, which every device can index and copy.
        words_T = self._upload(ids_T.view(np.int16 if ids_T.dtype == np.uint16 else np.int32))
        if self.compute.is_cuda:
            self.computing.wait_stream(self.up)
        sorted_ND = torch.empty((len(plan.order_N), self.dimension), dtype=torch.float16, device=self.compute.device)

        @torch.inference_mode()  # a setting of each thread
        def run(batch: Batch) -> None:
            columns = torch.arange(batch.length, device=words_T.device)
            ids_BL = words_T[starts_N[batch.start : batch.stop, None] + columns].to(torch.int32)
            if words_T.dtype == torch.int16:
                ids_BL &= 0xFFFF
            sorted_ND[batch.start : batch.stop] = self.model(ids_BL)

        with sdpa_kernel(GPU_ATTENTION) if self.compute.is_cuda else nullcontext():
            self._run_all(run, plan.batches)
        return self._download(plan.order_N, sorted_ND)

    def finish(self, window: InFlight) -> npt.NDArray[np.float16]:
        """The window's vectors (N, D), in the order of its rows."""
        if window.done is not None:
            window.done.synchronize()
        vectors_ND = np.empty(window.sorted_ND.shape, np.float16)
        vectors_ND[window.order_N] = window.sorted_ND.numpy()
        return vectors_ND

    def _run_all(self, run: Callable[[Batch], None], batches: tuple[Batch, ...]) -> None:
        if self.compute.device != "cpu":
            for batch in batches:
                run(batch)
            return
        with ThreadPoolExecutor(self.compute.threads, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            for _ in threads.map(run, batches):  # raises what a batch raised
                pass

    def _upload(self, array: npt.NDArray[Any]) -> Tensor:
        host = torch.from_numpy(array.copy())  # arrays over bytes are read-only, which torch does not know
        if not self.compute.is_cuda:
            return host.to(self.compute.device)
        with torch.cuda.stream(self.up):
            device = host.pin_memory().to(self.compute.device, non_blocking=True)
        device.record_stream(self.computing)  # its memory is not reused before the computing stream has read it
        return device

    def _download(self, order_N: npt.NDArray[np.int64], sorted_ND: Tensor) -> InFlight:
        if not self.compute.is_cuda:
            return InFlight(order_N, sorted_ND.cpu(), None)
        host = torch.empty(sorted_ND.shape, dtype=torch.float16, pin_memory=True)
        self.down.wait_stream(self.computing)
        with torch.cuda.stream(self.down):
            host.copy_(sorted_ND, non_blocking=True)
            done = self.down.record_event()
        sorted_ND.record_stream(self.down)
        return InFlight(order_N, host, done)


def pool(hidden_BLD: Tensor, mode: str, *, leading: int = 0, trailing: int = 0) -> Tensor:
    """One float32 vector a row, (B, D), over the tokens without `leading` and `trailing` ones.

    A row of special tokens only is pooled over all of them: every text has a vector.
    """
    if mode == "cls":  # the first token, whatever the span
        return hidden_BLD[:, 0].float()
    length = hidden_BLD.shape[1]
    if length > leading + trailing:
        hidden_BLD = hidden_BLD[:, leading : length - trailing]
    if mode == "max":
        return hidden_BLD.amax(1).float()
    mean_BD = hidden_BLD.mean(1, dtype=torch.float32)
    return mean_BD if mode == "mean" else mean_BD * hidden_BLD.shape[1] ** 0.5
