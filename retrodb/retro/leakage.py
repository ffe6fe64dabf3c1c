"""How much of each chunk its neighbours contain word for word (Borgeaud et al. 2022, section 2.6).

r(C) is the longest run of tokens that a chunk shares with one of its nearest neighbours, divided by the tokens of the chunk. Bits
per byte of only the chunks with r(C) <= alpha distinguish gains from copying and gains from understanding.

The paper's chunks all have m tokens. The last chunk of a document may be shorter here, and is divided by its own length. A chunk
whose neighbours were never looked up, because it has no vector, has no r(C): it is left out of every count, and counted apart.

Shapes: Q queries, K neighbours of r = 2 m tokens, m tokens a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
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
    query_lengths: Int64Array  # (Q,) tokens of each chunk
    is_measured: BoolArray  # (Q,) whether the chunk has tokens and its neighbours were looked up
    chunk_tokens: int  # m

    @property
    def num_measured(self) -> int:
        """The chunks that have an r(C): the denominator of every fraction."""
        return int(self.is_measured.sum())

    @property
    def ratio(self) -> NDArray[np.float64]:
        """r(C): (Q,) from 0 to 1; nan for a chunk that was not measured."""
        ratio = np.full(len(self.length), np.nan)
        np.divide(self.length, self.query_lengths, out=ratio, where=self.is_measured)
        return ratio

    def fraction_from(self, ratio: float) -> float:
        """The fraction of the measured chunks with this r(C) or more; nan when none was measured."""
        return float((self.ratio[self.is_measured] >= ratio).mean()) if self.num_measured else float("nan")

    def histogram(self) -> Int64Array:
        """(m + 1,) measured chunks with an r(C) from i / m up to (i + 1) / m, without the latter; the last class is 1."""
        lengths = np.maximum(self.query_lengths, 1)
        return np.bincount(
            (self.length * self.chunk_tokens // lengths)[self.is_measured], minlength=self.chunk_tokens + 1
        )


def longest_shared_runs(data: RetroData, k: int = NUM_NEAREST, is_looked_up: BoolArray | None = None) -> SharedRuns:
    """The longest shared run of every query with its first k neighbours; exact.

    Args:
        is_looked_up: (Q,) the queries whose neighbours were looked up; None means all.
    """
    runs_Q4 = np.zeros((len(data.query_tokens), 4), dtype=np.int64)
    for first in range(0, len(runs_Q4), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(runs_Q4)))
        _longest_runs(
            data.queries(rows), data.neighbour_values(rows, k), data.pad_token, runs_Q4[rows[0] : rows[-1] + 1]
        )
    length, start, neighbour, neighbour_start = runs_Q4.T
    query_lengths = np.asarray(data.query_lengths, dtype=np.int64)
    is_measured = query_lengths > 0 if is_looked_up is None else is_looked_up & (query_lengths > 0)
    return SharedRuns(length, start, neighbour, neighbour_start, query_lengths, is_measured, data.chunk_tokens)


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


def chunks_up_to_ratio(runs: SharedRuns) -> Int64Array:
    """(m + 1,) measured chunks with r(C) <= alpha, for alpha = 0, 1/m, ... 1."""
    return _up_to_ratio(runs, np.ones(len(runs.length))).astype(np.int64)


def _up_to_ratio(runs: SharedRuns, amounts: AnyArray) -> NDArray[np.float64]:
    """(m + 1,) the sum of an amount per chunk (Q,) over the measured chunks with r(C) <= 0, 1/m, ... 1."""
    m, lengths = runs.chunk_tokens, np.maximum(runs.query_lengths, 1)
    first_alpha = -(-runs.length * m // lengths)  # rounded up: r(C) <= i / m exactly from this i on
    is_measured = runs.is_measured
    return np.cumsum(np.bincount(first_alpha[is_measured], weights=amounts[is_measured], minlength=m + 1))


def leakage_curve(runs: SharedRuns, bits: NDArray[np.float64], num_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits per byte of the measured chunks with r(C) <= alpha, for alpha = 0, 1/m, ... 1: (m + 1,), nan where there is none.

    Args:
        runs: of Q chunks.
        bits: (Q,) the loss of each chunk.
        num_bytes: (Q,) the UTF-8 bytes of each chunk.
    """
    m = runs.chunk_tokens
    total_bits, total_bytes = _up_to_ratio(runs, bits), _up_to_ratio(runs, num_bytes)
    curve = np.full(m + 1, np.nan)
    np.divide(total_bits, total_bytes, out=curve, where=total_bytes > 0)
    return curve
