"""What it costs in recall that vectors find their lists through groups or a graph, and not exactly.

Legend: S sample, D dimensions, N vectors of a part of the sample, Q of them as queries, K neighbours, A lists.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.grouped_training import TrainingRows, evenly_spread
from retrodb.ann.metric import NO_NEIGHBOUR, check_vectors
from retrodb.format.arrays import Float32Array, Int32Array

NUM_NEIGHBOURS = 10
_QUERIES = 512  # 5,120 pairs: a cost of 0.003 is known within 2 * sqrt(0.003 / 5120) = 0.0015
_ROWS = 20_000  # an exact search of 512 queries over them is 4 * 10^9 multiplications at 384 dimensions
LEAST_RECALL = 0.997  # with less, more groups are probed
PROBES = (32, 128)  # lists that a scan reads: those that are stored with each vector, and about those for recall 0.9


def with_enough_groups(codebook: Codebook, sample: TrainingRows, threads: int = 1) -> tuple[Codebook, float | None]:
    """The codebook with so many probed groups that the assignment costs little, and its recall.

    The recall is relative: of the 10 nearest neighbours that a scan with exact assignment finds, the fraction found with that of
    the codebook. It is None where the assignment is exact.
    """
    if codebook.is_exact:
        return codebook, None
    base = check_vectors(sample[evenly_spread(_ROWS, len(sample))], codebook.dim, where="training sample")
    rows_Q, ids = evenly_spread(_QUERIES, len(base)), np.arange(len(base))
    others = Exclusion.of(len(rows_Q), document=rows_Q)
    blocks = [Block(ids, base, None, {"document": ids})]
    true_QK, _ = exact_topk(base[rows_Q], blocks, NUM_NEIGHBOURS, codebook.metric, others, threads)
    queries, vectors = (codebook.transform(rows, threads) for rows in (base[rows_Q], base[np.unique(true_QK)]))
    which_QK = np.searchsorted(np.unique(true_QK), true_QK)
    is_true_QK = true_QK != NO_NEIGHBOUR

    def num_found(lists_of: Callable[[Float32Array, int, int], Int32Array], probes: int) -> int:
        probed_QA, home_QK = lists_of(queries, probes, threads), lists_of(vectors, 1, threads)[:, 0][which_QK]
        return int(((probed_QA[:, None, :] == home_QK[:, :, None]).any(axis=2) & is_true_QK).sum())

    exact = [max(1, num_found(codebook.exact_lists_of, probes)) for probes in PROBES]
    while True:
        found = [num_found(codebook.nearest_lists_of, probes) for probes in PROBES]
        recall = round(min(some / all_ for some, all_ in zip(found, exact, strict=True)), 4)
        if recall >= LEAST_RECALL or codebook.groups is None or codebook.groups.probed >= len(codebook.groups):
            return codebook, recall
        codebook.quantizer.nprobe = min(2 * codebook.groups.probed, len(codebook.groups))
        codebook = Codebook(codebook.index)
