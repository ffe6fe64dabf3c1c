"""How much of each chunk its neighbours contain word for word (Borgeaud et al. 2022, section 2.6).

r(C) is the longest run of tokens that a chunk shares with one of its nearest neighbours, divided by m. Bits per byte of only the
chunks with r(C) <= alpha distinguish gains from copying and gains from understanding.

Shapes: Q queries, K neighbours of r = 2 m tokens, m tokens a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import Int64Array
from retrodb.retro.data import RetroData

NUM_NEAREST = 10  # as in the paper
_ROWS = 4096  # queries gathered at a time: 4096 x 10 x 128 x 8 bytes = 42 MB


@dataclass(frozen=True)
class SharedRuns:
    """The longest run of tokens that each query chunk shares with a neighbour; the first one when several are equally long."""

    length: Int64Array  # (Q,) tokens, 0 where nothing is shared
    start: Int64Array  # (Q,) its first token in the chunk
    neighbour: Int64Array  # (Q,) which neighbour, counted from 0
    neighbour_start: Int64Array  # (Q,) its first token in [N, F]
    chunk_tokens: int  # m

    @property
    def ratio(self) -> NDArray[np.float64]:
        """r(C): (Q,) from 0 to 1."""
        return self.length / self.chunk_tokens

    def histogram(self) -> Int64Array:
        """(m + 1,) chunks whose longest run has 0, 1, ... m tokens."""
        return np.bincount(self.length, minlength=self.chunk_tokens + 1)


def longest_shared_runs(data: RetroData, k: int = NUM_NEAREST) -> SharedRuns:
    """The longest shared run of every query with its first k neighbours; exact."""
    runs_Q4 = np.zeros((len(data.query_tokens), 4), dtype=np.int64)
    for first in range(0, len(runs_Q4), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(runs_Q4)))
        _longest_runs(
            data.queries(rows), data.neighbour_values(rows, k), data.pad_token, runs_Q4[rows[0] : rows[-1] + 1]
        )
    length, start, neighbour, neighbour_start = runs_Q4.T
    return SharedRuns(length, start, neighbour, neighbour_start, data.chunk_tokens)


@numba.njit(nogil=True, cache=True)
def _longest_runs(queries_Qm: Int64Array, neighbours_QKr: Int64Array, pad_token: int, runs_Q4: Int64Array) -> None:
    """Dynamic programming over one line of the table: run[j] is the run that ends at query token i and neighbour token j - 1."""
    Q, K, r = neighbours_QKr.shape
    run = np.zeros(r + 1, dtype=np.int64)
    for q in range(Q):
        for n in range(K):
            run[:] = 0
            for i in range(queries_Qm.shape[1]):
                token = queries_Qm[q, i]
                for j in range(r, 0, -1):  # downwards, so that run[j - 1] is still that of the line before
                    if token == pad_token or neighbours_QKr[q, n, j - 1] != token:
                        run[j] = 0
                        continue
                    run[j] = run[j - 1] + 1
                    if run[j] > runs_Q4[q, 0]:
                        runs_Q4[q] = (run[j], i + 1 - run[j], n, j - run[j])


def leakage_curve(runs: SharedRuns, bits: NDArray[np.float64], num_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits per byte of the chunks with r(C) <= alpha, for alpha = 0, 1/m, ... 1: (m + 1,), nan where there is none.

    Args:
        runs: of Q chunks.
        bits: (Q,) the loss of each chunk.
        num_bytes: (Q,) the UTF-8 bytes of each chunk.
    """
    m = runs.chunk_tokens
    total_bits = np.cumsum(np.bincount(runs.length, weights=bits, minlength=m + 1))
    total_bytes = np.cumsum(np.bincount(runs.length, weights=num_bytes, minlength=m + 1))
    curve = np.full(m + 1, np.nan)
    np.divide(total_bits, total_bytes, out=curve, where=total_bytes > 0)
    return curve
