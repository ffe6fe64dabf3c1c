"""The join of some rows of a query set, in blocks of a size that memory allows and an order that reads few lists.

A row's neighbours do not depend on its block, so neither memory, threads nor block size change a byte of a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.join import RERANK_MARGIN, join_block
from retrodb.ann.rerank import LivePart
from retrodb.config import DEFAULT_MEMORY_BYTES
from retrodb.errors import UsageError
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array
from retrodb.format.entries import Metric
from retrodb.view.view import SELF, View

LEAST_MEMORY = 64 << 20
_LEAST_ROWS = 256  # of a block, however little memory is left beside the database side
_ROWS_OF_LISTS = 16_384  # assigned to lists at once
_SUPERCLUSTERS = 64


@dataclass(frozen=True)
class JoinHardware:
    """What a join may use; none of it changes a byte."""

    threads: int = 1
    memory_bytes: int = (
        DEFAULT_MEMORY_BYTES  # of the process; what the operating system maps and can drop is not counted
    )
    device: str = "cpu"  # or a device of PyTorch, for the products

    def __post_init__(self) -> None:
        if self.memory_bytes < LEAST_MEMORY:
            raise UsageError(
                f"a memory limit of {self.memory_bytes:,} bytes is too small for a join",
                remedy=f"Give a --memory of {LEAST_MEMORY >> 20}MiB or more.",
            )


def join_rows(
    view: View,
    space: str,
    queries: str,
    rows: Int64Array,
    parts: list[LivePart],
    codebook: Codebook,
    nprobe: int,
    exclusion: Exclusion,
    width: int,
    hardware: JoinHardware,
) -> tuple[Int64Array, Float32Array]:
    """The `width` nearest of rows of a query set, (ids, distances); `nprobe` 0 compares with every vector."""
    ids, distances = np.empty((len(rows), width), np.int64), np.empty((len(rows), width), np.float32)
    lists = lists_of_rows(view, space, queries, rows, parts, codebook, nprobe, hardware.threads)
    for block in _blocks(rows, lists, parts, codebook, width, hardware):
        vectors, own = view.vectors(space, rows[block], queries), exclusion.rows(block)
        if nprobe == 0:
            found = exact_of(vectors, parts, codebook.metric, own, width, hardware.threads)
        else:
            found = join_block(
                vectors,
                lists[block],
                parts,
                codebook,
                width,
                nprobe,
                own,
                RERANK_MARGIN,
                hardware.threads,
                hardware.device,
            )
        ids[block], distances[block] = found
    return ids, distances


def exact_of(
    vectors: np.ndarray, parts: list[LivePart], metric: Metric, exclusion: Exclusion, k: int, threads: int
) -> tuple[Int64Array, Float32Array]:
    """The k nearest of query vectors among all rows of parts."""
    return exact_topk(vectors, (block for part in parts for block in part.blocks()), k, metric, exclusion, threads)


def lists_of_rows(
    view: View,
    space: str,
    queries: str,
    rows: Int64Array,
    parts: list[LivePart],
    codebook: Codebook,
    nprobe: int,
    threads: int,
) -> Int32Array:
    """(Q, nprobe) each row's nearest lists: as they were kept when it was added, or computed where too few were."""
    lists = np.full((len(rows), min(nprobe, codebook.num_lists)), -1, dtype=np.int32)
    if queries == SELF and nprobe:
        for part in parts:
            kept = part.part.lists_NA
            if kept.shape[1] >= lists.shape[1] and len(part.ids_N):
                place = np.minimum(np.searchsorted(part.ids_N, rows), len(part.ids_N) - 1)
                here = np.flatnonzero(part.ids_N[place] == rows)
                lists[here] = kept[place[here], : lists.shape[1]]
    missing = np.flatnonzero(lists[:, 0] < 0) if nprobe else rows[:0]
    for start in range(0, len(missing), _ROWS_OF_LISTS):
        some = missing[start : start + _ROWS_OF_LISTS]
        lists[some] = codebook.nearest_lists(view.vectors(space, rows[some], queries), lists.shape[1], threads)
    return lists


def _blocks(
    rows: Int64Array,
    lists: Int32Array,
    parts: list[LivePart],
    codebook: Codebook,
    width: int,
    hardware: JoinHardware,
) -> Iterator[Int64Array]:
    """Places of rows that are joined together: of one supercluster of lists, or of neighbouring ones."""
    dim = codebook.dim
    of_database = sum(part.ids_N.nbytes + len(part.ids_N) * (1 + 8 * len(part.keys)) for part in parts)
    of_row = (2 + 3 * 4 + 1) * dim + 2 * 12 * lists.shape[1] + 4 * 12 * (width + RERANK_MARGIN)
    size = max(_LEAST_ROWS, (hardware.memory_bytes - of_database) // of_row)
    if lists.shape[1] == 0 or size >= len(rows):
        order = np.arange(len(rows))
    else:
        order = np.lexsort((lists[:, 0], _superclusters(codebook)[lists[:, 0]]))
    for start in range(0, len(rows), size):
        yield order[start : start + size]


def _superclusters(codebook: Codebook) -> Int32Array:
    """(L,) lists whose centroids are near the same one of a few: queries of one probe few lists of others."""
    centroids_LD = codebook.centroids_LD
    step = max(1, len(centroids_LD) // _SUPERCLUSTERS)
    return exact_topk(centroids_LD, centroids_LD[::step], 1, codebook.metric)[0][:, 0].astype(np.int32)
