"""The join of rows of a query set with the database, in blocks that fit into memory and read few lists.

The neighbours of a row do not depend on its block, so memory limit, threads and block size change no byte of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.join import RERANK_MARGIN, join_block
from retrodb.ann.list_rows import ListRows
from retrodb.ann.rerank import LivePart
from retrodb.ann.routing import Probes
from retrodb.ann.topk import TopK, empty_topk
from retrodb.encode.gpu_devices import may_have_gpu
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array, VectorArray
from retrodb.format.entries import Metric
from retrodb.format.part_files import LISTS_FILE
from retrodb.memory import default_memory
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.view.coverage import Coverage
from retrodb.view.view import SELF, View

_ASSIGNED_ROWS = 16_384  # whose nearest lists are computed at once: 25 MB of float32 at 384 dimensions
_SUPERCLUSTERS = 64  # groups of lists: rows of one group probe mostly lists of this group, 1/64 of all


@dataclass(frozen=True)
class JoinHardware:
    """What a join may use. It changes no byte of a table."""

    threads: int = 1
    memory_bytes: int = field(default_factory=default_memory)  # limit of the process, see `retrodb/memory.py`
    device: str = "cpu"  # or a device of PyTorch, for the products
    list_ranges: int | None = None  # that the join is split in; None chooses them by the size and the memory limit


def chosen_device(device: str) -> str:
    """The device of PyTorch that was asked for; "auto" is a CUDA GPU where there is one, else "cpu".

    Raises:
        UsageError: when the device does not exist or is unknown.
    """
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        return "cpu"  # PyTorch would say the same
    from retrodb.encode.device import choose_compute

    chosen = choose_compute(device).device
    return chosen if chosen.startswith("cuda") or device != "auto" else "cpu"


def join_rows(
    view: View,
    space: str,
    queries: str,
    rows: Int64Array,
    parts: Sequence[LivePart] | Sequence[ListRows],
    codebook: Codebook,
    probes: Probes,
    exclusion: Exclusion,
    width: int,
    hardware: JoinHardware,
) -> TopK:
    """The `width` nearest chunks of rows of a query set: ids (Q, width) int64 and distances (Q, width) float32.

    Args:
        probes: which lists each row reads; to compare with every vector, parts are live parts.
        exclusion: what each row must not have as a neighbour.
    """
    ids, distances = empty_topk(len(rows), width)
    lists = lists_of_rows(view, space, queries, rows, codebook, probes, hardware.threads)
    block_rows = _size(rows, lists, parts, codebook, width, hardware).block_rows(hardware.memory_bytes)
    for block in _blocks(lists, codebook, block_rows):
        vectors, excluded = view.vectors(space, rows[block], queries), exclusion.rows(block)
        if probes.nprobe == 0:
            live = [part for part in parts if isinstance(part, LivePart)]
            nearest = exact_neighbours(vectors, live, codebook.metric, excluded, width, hardware.threads)
        else:
            nearest = join_block(
                vectors,
                lists[block],
                parts,
                codebook,
                width,
                probes.nprobe,
                excluded,
                RERANK_MARGIN,
                hardware.threads,
                hardware.device,
                partial(view.vectors, space),
                probes.most_lists,
            )
        ids[block], distances[block] = nearest
    return ids, distances


def exact_neighbours(
    vectors: VectorArray, parts: Iterable[LivePart], metric: Metric, exclusion: Exclusion, k: int, threads: int
) -> tuple[Int64Array, Float32Array]:
    """The exact k nearest rows of parts: ids (Q, k) int64 and distances (Q, k) float32."""
    return exact_topk(vectors, (block for part in parts for block in part.blocks()), k, metric, exclusion, threads)


def lists_of_rows(
    view: View, space: str, queries: str, rows: Int64Array, codebook: Codebook, probes: Probes, threads: int
) -> Int32Array:
    """(Q, A) the lists that each row reads, nearest first. Only the nearest list of an indexed row is stored, and then read."""
    lists = np.full((len(rows), min(probes.nprobe, codebook.num_findable)), -1, dtype=np.int32)
    if queries == SELF and (probes.nprobe, probes.routing) == (1, None) and codebook.findable is None:
        for hit in stored_lists(view, space).lookup(rows):
            lists[hit.where, 0] = view.chunks.map(hit.record)[hit.positions]
    missing = np.flatnonzero(lists[:, 0] < 0) if probes.nprobe else rows[:0]
    for start in range(0, len(missing), _ASSIGNED_ROWS):
        block = missing[start : start + _ASSIGNED_ROWS]
        lists[block] = probes.lists(codebook, view.vectors(space, rows[block], queries), threads)
    return lists


def stored_lists(view: View, space: str) -> Coverage:
    """The files of the parts with the list of each row."""
    records = view.manifest.files("parts", space)
    return Coverage([record for record in records if record.path.endswith(f"/{LISTS_FILE}")], view.files)


def _blocks(lists: Int32Array, codebook: Codebook, block_rows: int) -> Iterator[Int64Array]:
    """Positions of the rows that are joined together: those of one supercluster of lists, or of neighbouring ones."""
    if lists.shape[1] == 0 or block_rows >= len(lists):
        order = np.arange(len(lists))
    else:
        order = np.lexsort((lists[:, 0], _superclusters(codebook)[lists[:, 0]]))
    for start in range(0, len(lists), block_rows):
        yield order[start : start + block_rows]


def _size(
    rows: Int64Array,
    lists: Int32Array,
    parts: Sequence[LivePart] | Sequence[ListRows],
    codebook: Codebook,
    width: int,
    hardware: JoinHardware,
) -> JoinSize:
    sizes = [len(part.ids_N) for part in parts]
    return JoinSize(
        dim=codebook.dim,
        num_lists=codebook.num_lists,
        nprobe=lists.shape[1],
        width=width,
        num_kinds=max((len(part.keys) for part in parts), default=0),
        database_rows=sum(sizes),
        largest_part=max(sizes, default=0),
        task_rows=len(rows),
        threads=hardware.threads,
        on_cpu=hardware.device == "cpu",
    )


def _superclusters(codebook: Codebook) -> Int32Array:
    """(L,) the group of each list: lists of one group have near centroids, so their queries probe few other lists."""
    centroids_LD = codebook.centroids_LD
    step = max(1, len(centroids_LD) // _SUPERCLUSTERS)
    return exact_topk(centroids_LD, centroids_LD[::step], 1, codebook.metric)[0][:, 0].astype(np.int32)
