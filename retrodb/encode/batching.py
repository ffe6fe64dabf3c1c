"""Groups rows into batches, by their lengths only.

All rows of a batch have equal length, so that a batch needs no padding and no mask. The rows of a batch depend only on the
lengths of the rows of its window and on the token budget, not on workers, memory or device. Both are recorded, so equal rows
get equal batches, and so equal bytes, at any later time.

Shapes: N rows of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from retrodb.format.arrays import Int32Array, Int64Array

# Rows that are grouped together. An interrupted shard resumes at a window: minutes of a CPU core with MiniLM or a few seconds
# of a GPU with BERT-base; 25 and 200 MB of vectors with 768 dimensions.
WINDOW_ROWS = 16_384
GPU_WINDOW_ROWS = 131_072


@dataclass(frozen=True)
class EqualLengthBatch:
    """Rows `order_N[start:stop]` of a plan, each of exactly `length` tokens."""

    start: int
    stop: int
    length: int


@dataclass(frozen=True)
class BatchPlan:
    """All rows of a window in batches. The longest come first, so that memory is highest at the start, not at the end."""

    order_N: Int64Array  # rows by descending length, ascending within one length
    batches: tuple[EqualLengthBatch, ...]  # consecutive slices that cover order_N


def plan_batches(lengths_N: Int64Array | Int32Array, *, batch_tokens: int) -> BatchPlan:
    """Group rows of equal length into batches of at most `batch_tokens` tokens, but at least one row."""
    order_N = np.argsort(-lengths_N.astype(np.int64), kind="stable")
    sorted_N = lengths_N[order_N]
    edges = [0, *(np.flatnonzero(np.diff(sorted_N)) + 1).tolist(), len(order_N)]
    batches = []
    for first, last in pairwise(edges):
        if first == last:  # an empty window
            continue
        length = int(sorted_N[first])
        rows = max(1, batch_tokens // max(1, length))
        batches += [EqualLengthBatch(start, min(start + rows, last), length) for start in range(first, last, rows)]
    return BatchPlan(order_N, tuple(batches))


def row_windows(num_rows: int, *, window_rows: int = WINDOW_ROWS) -> Iterator[tuple[int, int]]:
    """The row ranges (start, stop) that are encoded one after the other."""
    for start in range(0, num_rows, window_rows):
        yield start, min(start + window_rows, num_rows)
