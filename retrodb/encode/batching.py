"""Which rows are computed together: pure arithmetic over lengths.

Rows of one batch have exactly the same length, so that a batch needs no padding and no mask. What is in a batch depends on
the lengths of its window and on the token budget, and on nothing else: not on workers, memory or device. Both are recorded,
so the same rows can be given the same batches, and with them the same bytes, at any later time.

Shapes: N rows of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

# Rows that are grouped together, and the unit at which an interrupted shard resumes: minutes of a CPU core with MiniLM, a few
# seconds of a GPU with BERT-base, 25 and 200 MB of vectors at 768 dimensions.
WINDOW_ROWS = 16_384
GPU_WINDOW_ROWS = 131_072


@dataclass(frozen=True)
class Batch:
    """Rows `order_N[start:stop]` of a plan, each of exactly `length` tokens."""

    start: int
    stop: int
    length: int


@dataclass(frozen=True)
class BatchPlan:
    """All rows of a window in batches; longest first, so that memory peaks at once and not in the end."""

    order_N: npt.NDArray[np.int64]  # rows by falling length, in their own order within one length
    batches: tuple[Batch, ...]  # contiguous slices of order_N that together cover it


def plan_batches(lengths_N: npt.NDArray[np.integer], *, batch_tokens: int) -> BatchPlan:
    """Groups rows by exact length, at most `batch_tokens` tokens a batch and at least one row."""
    order_N = np.argsort(-lengths_N.astype(np.int64), kind="stable")
    sorted_N = lengths_N[order_N]
    edges = [0, *(np.flatnonzero(np.diff(sorted_N)) + 1).tolist(), len(order_N)]
    batches = []
    for first, last in pairwise(edges):
        if first == last:  # an empty window
            continue
        length = int(sorted_N[first])
        rows = max(1, batch_tokens // max(1, length))
        batches += [Batch(start, min(start + rows, last), length) for start in range(first, last, rows)]
    return BatchPlan(order_N, tuple(batches))


def windows(num_rows: int, *, window_rows: int = WINDOW_ROWS) -> Iterator[tuple[int, int]]:
    """The (start, stop) row ranges that are encoded one after the other."""
    for start in range(0, num_rows, window_rows):
        yield start, min(start + window_rows, num_rows)
