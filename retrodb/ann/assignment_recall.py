"""What it costs in recall that vectors find their lists through groups or a graph, and not exactly.

Legend: S sample, D dimensions, N vectors of a part of the sample, Q of them as queries, K neighbours, A lists.
"""

from __future__ import annotations

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.grouped_training import evenly_spread
from retrodb.ann.metric import NO_NEIGHBOUR, check_vectors
from retrodb.ann.training import TrainingRows
from retrodb.format.arrays import BoolArray, Int32Array

NUM_NEIGHBOURS = 10
_QUERIES = 512  # 5,120 pairs: a cost of 0.003 is known within 2 * sqrt(0.003 / 5120) = 0.0015
_ROWS = 20_000  # an exact search of 512 queries over them is 4 * 10^9 multiplications at 384 dimensions
MOST_PROBES = 128  # about those for recall 0.9; with more probes the assignment costs less


def assignment_recall(codebook: Codebook, sample: TrainingRows, nprobe: int, threads: int = 1) -> float | None:
    """Of the 10 nearest neighbours that a scan with exact assignment finds, the fraction found with that of the codebook.

    Both scan the same number of lists. None where the assignment is exact.
    """
    if codebook.is_exact:
        return None
    base = check_vectors(sample[evenly_spread(_ROWS, len(sample))], codebook.dim, where="training sample")
    rows_Q, ids = evenly_spread(_QUERIES, len(base)), np.arange(len(base))
    others = Exclusion.of(len(rows_Q), document=rows_Q)
    blocks = [Block(ids, base, None, {"document": ids})]
    true_QK, _ = exact_topk(base[rows_Q], blocks, NUM_NEIGHBOURS, codebook.metric, others, threads)
    queries = codebook.transform(base[rows_Q], threads)
    neighbours, which_QK = np.unique(true_QK, return_inverse=True)
    homes = codebook.transform(base[neighbours], threads)
    nprobe = min(nprobe, MOST_PROBES)
    exact, chosen = (
        _is_found(
            lists_of(queries, nprobe, threads), lists_of(homes, 1, threads)[:, 0][which_QK.reshape(true_QK.shape)]
        )
        for lists_of in (codebook.exact_lists_of, codebook.nearest_lists_of)
    )
    is_true_QK = true_QK != NO_NEIGHBOUR
    return round(float((chosen & is_true_QK).sum() / max(1, (exact & is_true_QK).sum())), 4)


def _is_found(probed_QA: Int32Array, home_QK: Int32Array) -> BoolArray:
    """(Q, K) whether the list of a neighbour is probed."""
    found_QK: BoolArray = (probed_QA[:, None, :] == home_QK[:, :, None]).any(axis=2)
    return found_QK
