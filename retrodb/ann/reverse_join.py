"""Few new rows joined with very many old queries: each query is compared with the new rows that are grouped under its lists.

Two questions are asked so. Which new rows does a query find? Those whose own list it probes. And which queries may find one of
the new rows? Those whose own list is near a new row: so few queries have to be looked at. The number of distances is that of a
whole join times the fraction of rows that are new, so all of them can be exact at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from retrodb.ann.codegen.exact_insertion import Columns, insert_by_list
from retrodb.ann.codegen.grouping import ListGroups, group_by_list
from retrodb.ann.exact import Block, run_rows
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.metric import check_vectors
from retrodb.ann.topk import TopK
from retrodb.format.arrays import Float32Array, Int32Array, VectorArray
from retrodb.format.entries import Metric

BLOCK_QUERIES = 16_384  # in float32 at once: 16,384 * 384 dimensions * 4 bytes = 25 MB


@dataclass(frozen=True)
class NewRows:
    """Rows by lists, such as the own list of each: checked and grouped once, for many blocks of queries."""

    rows: Block
    vectors_ND: Float32Array
    groups: ListGroups

    @classmethod
    def of(cls, rows: Block, lists_NA: Int32Array, num_lists: int) -> NewRows:
        """From the lists (N, A) that each row is grouped under.

        Raises:
            InputError: NaN or infinity; names the row.
        """
        vectors_ND = check_vectors(rows.vectors_ND, rows.vectors_ND.shape[1], where="new vectors")
        return cls(rows, vectors_ND, group_by_list(lists_NA, 0, len(lists_NA), num_lists))


def reverse_join(
    queries_QD: VectorArray,
    lists_QA: Int32Array,
    new: NewRows,
    metric: Metric,
    exclusion: Exclusion,
    best: TopK,
    threads: int = 1,
) -> None:
    """Merge into the best k of each query, in place, the allowed new rows under its lists, by exact distances.

    Args:
        lists_QA: each query's lists, -1 for none; no new row may be under two of them. Queries in the order of their first
            list are fastest.
        best: (ids_QK, distances_QK); only what is nearer than the last, or ties with it by a smaller id, enters.

    Raises:
        MismatchError: another dimension, or exclusion keys that are missing.
        InputError: NaN or infinity; names the row.
    """
    queries = check_vectors(queries_QD, new.vectors_ND.shape[1], where="queries")
    columns = Columns(new.vectors_ND, new.rows.ids_N, exclusion.stack(new.rows.keys, len(new.vectors_ND)))
    insert = partial(
        insert_by_list,
        queries_QD=queries,
        lists_QA=lists_QA,
        groups=new.groups,
        columns=columns,
        keys=exclusion.query_keys(),
        is_l2=metric == "squared_l2",
        best=best,
    )
    run_rows(insert, len(queries), threads)
