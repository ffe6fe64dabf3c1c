"""How many lists a join or a search looks through.

`bench recall --target-recall` measures it on held-out queries and stores it with the index; a join for whose recall none is
stored measures it on a sample of its own rows: their exact neighbours say how many lists have to be read. Nothing is
timed, and the samples are seeded, so equal work chooses equally.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.recall_curve import recall_curve
from retrodb.ann.rerank import LivePart
from retrodb.engine.run import open_run
from retrodb.format.arrays import AnyArray, Int32Array, Int64Array
from retrodb.format.entries import IndexEntry, StoredPoint
from retrodb.format.json_values import to_plain_object
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.view.view import View

STAGE_VERSION = 1
SAMPLE_ROWS = 256  # gives recall within about 0.02 at 95%
MAX_LISTS = 2048


@dataclass(frozen=True)
class OperatingPoint:
    """Lists to read for each row, and the recall that they give."""

    nprobe: int  # 0: compare with every vector
    recall: float  # share of the true k neighbours that lie in these lists, on the sample


EXACT = OperatingPoint(0, 1.0)


def stored_point(view: View, space: str, recall: float | None) -> OperatingPoint | None:
    """The stored point of a space for a recall: of those that were asked for as much or more the fewest lists.

    Points are at least one list, also where one list is all; a retrain takes them away with the codebook.

    Args:
        recall: what is wanted; None takes the point that was stored last.

    Returns:
        None where no such point is stored.
    """
    entry = view.snapshot.entry(IndexEntry, space)
    points = entry.operating_points if entry else ()
    if recall is None:
        fitting = list(points[-1:])
    else:
        fitting = sorted((p for p in points if p.target >= recall), key=lambda p: p.nprobe)[:1]
    return OperatingPoint(fitting[0].nprobe, fitting[0].recall) if fitting else None


def store_point(context: Context, space: str, target: float, point: OperatingPoint, k: int) -> int:
    """Store a point with the index of a space, in the place of an older one for the same recall, and give the snapshot.

    Args:
        target: the recall that was asked for.
        k: neighbours that it was measured with.

    Raises:
        ConflictError: when the space was indexed anew meanwhile.
    """
    view = context.view()
    entry = view.snapshot.existing(IndexEntry, space)
    own = StoredPoint(target, point.nprobe, point.recall, k)
    points = (*(old for old in entry.operating_points if old.target != target), own)
    if points == entry.operating_points:
        return view.snapshot.number
    plan = {"version": STAGE_VERSION, "space": space, "snapshot": view.snapshot.number, "point": own}
    run = open_run(context.storage, "operating-point", plan, context.clock)
    change = Change(
        transaction=run.id,
        command="bench recall",
        arguments=to_plain_object(own),
        clock=run.clock,
        conflict_keys=conflict_keys.operating_point(space),
        entries={f"index/{space}": replace(entry, operating_points=points)},
    )
    return commit(context.storage, view.snapshot, change).number


def default_nprobe(num_lists: int) -> int:
    """Lists that a search of single queries reads: an eighth of all, at least 8."""
    return min(num_lists, max(8, num_lists // 8))


def measure(
    codebook: Codebook,
    parts: list[LivePart],
    vectors: AnyArray,
    exclusion: Exclusion,
    k: int,
    target: float,
    true_ids: Int64Array | None = None,
) -> OperatingPoint:
    """The fewest lists that reach a recall on a sample of queries (Q, D); all that were measured where none does.

    Args:
        true_ids: the queries' exact neighbours (Q, k), where they are known.
    """
    if codebook.num_lists == 1:
        return EXACT
    if true_ids is None:
        blocks = (block for part in parts for block in part.blocks())
        true_ids, _ = exact_topk(vectors, blocks, k, codebook.metric, exclusion)
    lists = codebook.nearest_lists(vectors, min(codebook.num_lists, MAX_LISTS))
    if not (true_ids >= 0).any():
        return OperatingPoint(lists.shape[1], 1.0)
    curve = recall_curve(lists, lists_of(parts, true_ids), list_sizes(parts, codebook.num_lists))
    point = next((point for point in curve if point.recall.mean >= target), curve[-1])
    return OperatingPoint(point.nprobe, round(point.recall.mean, 4))


def lists_of(parts: list[LivePart], ids: Int64Array) -> Int32Array:
    """The list that holds each chunk; -1 for -1."""
    lists = np.full(ids.shape, -1, dtype=np.int32)
    for part in parts:
        if len(part.ids_N):
            place = np.minimum(np.searchsorted(part.ids_N, ids), len(part.ids_N) - 1)
            lists = np.where(part.ids_N[place] == ids, part.part.lists_NA[:, 0][place], lists)
    return lists


def list_sizes(parts: list[LivePart], num_lists: int) -> Int64Array:
    """(L,) vectors in each list, over all parts."""
    sizes = np.zeros(num_lists, dtype=np.int64)
    for part in parts:
        sizes += np.diff(part.part.offsets_L1)
    return sizes
