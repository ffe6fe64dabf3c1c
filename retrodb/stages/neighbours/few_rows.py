"""The join of few rows with a database of which no process holds all rows: one range of lists after another is in memory.

A repair joins new rows, and those that lost too many neighbours, with all lists that they probe. Lists that none of them
probes are not read. The nearest by (code distance, id) of all ranges are those of all lists, so ranges change no byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.join import RERANK_MARGIN, ScannedDatabase, mark_capped, scan_lists_of
from retrodb.ann.list_rows import ListRows
from retrodb.ann.metric import NO_NEIGHBOUR, check_vectors
from retrodb.ann.rerank import rerank_by_id
from retrodb.ann.routing import Probes, lists_at_most, more_probes
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import BoolArray, Float32Array, Int32Array, Int64Array
from retrodb.stages.neighbours.block_join import JoinHardware, lists_of_rows
from retrodb.stages.neighbours.compared_tasks import TableInputs
from retrodb.stages.neighbours.join_memory import EXCHANGED_ROWS
from retrodb.stages.neighbours.range_rows import ListRange, rows_in_lists
from retrodb.stages.neighbours.table_inputs import exclusion_of
from retrodb.view.view import View


def join_few_rows(
    view: View,
    inputs: TableInputs,
    rows: Int64Array,
    codebook: Codebook,
    probes: Probes,
    num_chunks: int,
    num_ranges: int,
    hardware: JoinHardware,
    are_chosen: Callable[[Int64Array], BoolArray] | None = None,
) -> TopK:
    """The nearest chunks of rows of a query set, ids and distances (Q, k + spare_neighbours) each, as `nearest_chunks`.

    Args:
        probes: lists that each row reads, at least 1.
        num_chunks: that can be neighbours.
        num_ranges: that the lists are cut in.
        are_chosen: as of `rows_in_lists`.
    """

    def rows_of(lists: ListRange, read: Int32Array) -> list[ListRows]:
        return list(rows_in_lists(view, inputs.space, inputs.params, lists, read=read, are_chosen=are_chosen))

    width = inputs.params.k + inputs.params.spare_neighbours
    wanted, most = min(width, num_chunks), lists_at_most(probes.most_lists, codebook.num_findable)
    ids, distances = empty_topk(len(rows), width)
    ranges = list(_ranges(codebook.num_lists, num_ranges))
    for start in range(0, len(rows), EXCHANGED_ROWS):
        block = slice(start, start + EXCHANGED_ROWS)
        queries = check_vectors(view.vectors(inputs.space, rows[block], inputs.queries), codebook.dim, where="queries")
        exclusion = exclusion_of(view, inputs.queries, inputs.params, rows[block])
        probed = lists_of_rows(view, inputs.space, inputs.queries, rows[block], codebook, probes, hardware.threads)
        candidates = _candidates(
            rows_of, queries, probed, exclusion, codebook, ranges, wanted, most, width + RERANK_MARGIN, hardware
        )
        fetch = partial(view.vectors, inputs.space)
        nearest = rerank_by_id(queries, candidates, fetch, width, codebook.metric, hardware.threads)
        if most < codebook.num_findable:
            mark_capped(nearest, _num_found(candidates) < wanted)
        ids[block], distances[block] = nearest
    return ids, distances


def _candidates(
    rows_of: Callable[[ListRange, Int32Array], list[ListRows]],
    queries: Float32Array,
    lists_QA: Int32Array,
    exclusion: Exclusion,
    codebook: Codebook,
    ranges: list[ListRange],
    wanted: int,
    most: int,
    width: int,
    hardware: JoinHardware,
) -> Int64Array:
    """(Q, width) the nearest chunks of each row by codes; rows that find fewer than `wanted` probe at most `most` lists."""
    found = np.full((len(queries), width), NO_NEIGHBOUR, dtype=np.int64)
    asked, nprobe = np.arange(len(queries)), lists_QA.shape[1]
    is_partial = (lists_QA >= 0).sum(axis=1) < most  # a routed row may read fewer lists than it has columns
    while len(asked):
        best = empty_topk(len(asked), width)
        for lists in ranges:
            is_inside = (lists_QA >= lists.first) & (lists_QA < lists.end)
            where = np.flatnonzero(is_inside.any(axis=1))
            if len(where):
                read = np.unique(lists_QA[is_inside])
                parts = rows_of(lists, read)
                database = ScannedDatabase.of(parts, codebook, lists.count, lists.first)
                of_rows = best[0][where], best[1][where]
                excluded = exclusion.rows(asked[where])
                of_range = scan_lists_of(
                    queries[asked[where]],
                    lists_QA[where],
                    database,
                    excluded,
                    of_rows,
                    hardware.threads,
                    hardware.device,
                )
                best[0][where], best[1][where] = of_range
        found[asked] = best[0]
        is_starved = is_partial & (_num_found(best[0]) < wanted)
        asked, nprobe = asked[is_starved], more_probes(nprobe, most)
        lists_QA = codebook.nearest_lists(queries[asked], nprobe, hardware.threads)
        is_partial = np.full(len(asked), nprobe < most)
    return found


def _num_found(ids_QW: Int64Array) -> Int64Array:
    """(Q,) how many chunks each row has."""
    counts: Int64Array = np.count_nonzero(ids_QW != NO_NEIGHBOUR, axis=1)
    return counts


def _ranges(num_lists: int, num_ranges: int) -> Iterator[ListRange]:
    """Ranges of about as many lists each."""
    bounds = np.linspace(0, num_lists, min(num_ranges, num_lists) + 1).astype(int).tolist()
    yield from (ListRange(first, end) for first, end in pairwise(bounds))
