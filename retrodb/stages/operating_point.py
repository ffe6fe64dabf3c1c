"""How many lists a join or a search looks through.

A join measures it: the exact neighbours of a sample of its own rows say how many lists have to be read for the recall that was
asked for. Nothing is timed, and the sample is seeded, so equal work chooses equally.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.operating_point import recall_curve
from retrodb.ann.rerank import LivePart
from retrodb.format.arrays import AnyArray, Int32Array, Int64Array

SAMPLE_ROWS = 256  # gives recall within about 0.02 at 95%
MAX_LISTS = 2048


@dataclass(frozen=True)
class OperatingPoint:
    """Lists to read for each row, and the recall that they give."""

    nprobe: int  # 0: compare with every vector
    recall: float  # share of the true k neighbours that lie in these lists, on the sample


EXACT = OperatingPoint(0, 1.0)


def default_nprobe(num_lists: int) -> int:
    """Lists that a search of single queries reads: an eighth of all, at least 8."""
    return min(num_lists, max(8, num_lists // 8))


def measure(
    codebook: Codebook, parts: list[LivePart], vectors: AnyArray, exclusion: Exclusion, k: int, target: float
) -> OperatingPoint:
    """The fewest lists that reach a recall on a sample of queries (Q, D); all that were measured where none does."""
    if codebook.num_lists == 1:
        return EXACT
    true_ids, _ = exact_topk(vectors, (b for part in parts for b in part.blocks()), k, codebook.metric, exclusion)
    lists = codebook.nearest_lists(vectors, min(codebook.num_lists, MAX_LISTS))
    if not (true_ids >= 0).any():
        return OperatingPoint(lists.shape[1], 1.0)
    curve = recall_curve(lists, _lists_of(parts, true_ids), _list_sizes(parts, codebook.num_lists))
    point = next((point for point in curve if point.recall.mean >= target), curve[-1])
    return OperatingPoint(point.nprobe, round(point.recall.mean, 4))


def _lists_of(parts: list[LivePart], ids: Int64Array) -> Int32Array:
    """The list that holds each chunk; -1 for -1."""
    lists = np.full(ids.shape, -1, dtype=np.int32)
    for part in parts:
        if len(part.ids_N):
            place = np.minimum(np.searchsorted(part.ids_N, ids), len(part.ids_N) - 1)
            lists = np.where(part.ids_N[place] == ids, part.part.lists_NA[:, 0][place], lists)
    return lists


def _list_sizes(parts: list[LivePart], num_lists: int) -> Int64Array:
    sizes = np.zeros(num_lists, dtype=np.int64)
    for part in parts:
        sizes += np.diff(part.part.offsets_L1)
    return sizes
