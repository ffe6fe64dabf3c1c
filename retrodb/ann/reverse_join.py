"""New rows reverse_join the queries that were there: each is compared with those whose own list it probes.

A search asks which rows a query should see. For a few new rows and very many old queries the question is turned round: a new
row probes as many lists as a query would, and enters the neighbours of the queries that live there. That is as many
distances as the new rows' share of a whole join, and few enough to be exact at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrodb.ann import kernels
from retrodb.ann.exact import Block, run_rows
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.metric import Metric, check_vectors
from retrodb.ann.scan import group_by_list
from retrodb.ann.topk import TopK
from retrodb.format.arrays import Float32Array, Int64Array, VectorArray

BLOCK_QUERIES = 16_384  # in float32 at once: 25 MB at 384 dimensions


@dataclass(frozen=True)
class NewRows:
    """Rows by the lists that they probe: checked and grouped once, for many blocks of queries."""

    rows: Block
    vectors_ND: Float32Array
    offsets_L1: Int64Array  # list l is probed by columns_M[offsets[l]:offsets[l + 1]]
    columns_M: Any  # int32 places in the rows

    @classmethod
    def of(cls, rows: Block, probes_NA: NDArray[np.int32], num_lists: int) -> NewRows:
        """From the lists (N, A) that each row probes.

        Raises:
            InputError: NaN or infinity; names the row.
        """
        vectors_ND = check_vectors(rows.vectors_ND, rows.vectors_ND.shape[1], where="new vectors")
        grouped = group_by_list(probes_NA, 0, len(probes_NA), 0, probes_NA.shape[1], num_lists)
        return cls(rows, vectors_ND, *grouped)


def reverse_join(
    queries_QD: VectorArray,
    homes_Q: NDArray[np.int32],
    new: NewRows,
    metric: Metric,
    exclusion: Exclusion,
    best: TopK,
    threads: int = 1,
) -> None:
    """Merge into the best k of each query, in place, the allowed new rows that probe its list, by exact distances.

    Args:
        homes_Q: each query's nearest list; queries in their order are fastest.
        best: (ids_QK, distances_QK); only what is nearer than the last, or ties with it by a smaller id, enters.

    Raises:
        MismatchError: another dimension, or exclusion keys that are missing.
        InputError: NaN or infinity; names the row.
    """
    queries = check_vectors(queries_QD, new.vectors_ND.shape[1], where="queries")
    keys_JC = exclusion.stack(new.rows.keys, len(new.vectors_ND))
    columns = new.vectors_ND, new.rows.ids_N, keys_JC, new.offsets_L1, new.columns_M
    ids_QK, distances_QK = best
    masks = exclusion.offsets_JQ1, exclusion.keys_M
    run_rows(
        lambda first, stop: kernels.insert_reverse(
            first, stop, queries, homes_Q, *columns, *masks, metric == "squared_l2", distances_QK, ids_QK
        ),
        len(queries),
        threads,
    )
