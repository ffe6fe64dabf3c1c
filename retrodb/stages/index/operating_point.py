"""How many lists a join or a search reads.

`bench recall --target-recall` measures it on held-out queries and stores it with the index. A join for whose recall no point
is stored measures it on a sample of its own rows: their exact neighbours show how many lists have to be read. Nothing is
timed and the samples are seeded, so equal inputs give equal points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from retrodb.ann.recall_curve import recall_curve
from retrodb.ann.route_learning import learned_routing
from retrodb.ann.routing import PROBED_NEXT
from retrodb.format.arrays import Int32Array, Int64Array
from retrodb.format.entries import IndexEntry, Routing, StoredPoint
from retrodb.format.part_files import LISTS_FILE
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

STAGE_VERSION = 1
SAMPLE_ROWS = 256  # recall 0.95 at k = 2 is known within 2 * sqrt(0.95 * 0.05 / 512) = 0.02
# Lists of an index that a row may read whole. Of 1e10 vectors in 4,194,304 lists, these hold 20 million.
_LEAST_CAP = 8192
MAX_LISTS = 2048  # lists that are ranked per sample row: 256 rows * 2,048 lists are 4 MB of distances


@dataclass(frozen=True)
class OperatingPoint:
    """Lists to read for each row, and the recall that they give."""

    nprobe: int  # 0: compare with every vector
    recall: float  # fraction of the true k neighbours of the sample that lie in these lists
    routing: Routing | None = None  # None: the nearest lists of each row
    filled_lists: int = 0  # that these are chosen among, of a restricted table; 0: all


EXACT = OperatingPoint(0, 1.0)


def stored_point(view: View, space: str, recall: float | None) -> OperatingPoint | None:
    """The stored point of a space that reads the fewest lists and was measured for this recall or a higher one.

    Points have at least one list. A new codebook removes them.

    Args:
        recall: wanted recall; None takes the point that was stored last.

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


@dataclass(frozen=True)
class StorePointPlan:
    """An operating point to store."""

    view: View
    space: str
    point: StoredPoint
    entry: IndexEntry  # of the index, with the point
    is_stored: bool  # already


def store_point(context: Context, space: str, point: StoredPoint) -> int:
    """Store a point with the index of a space, in place of an older one for the same target, and return the snapshot.

    Raises:
        ConflictError: when the codebook of the space was replaced since the plan.
    """
    return execute_store_point(context, plan_store_point(context.view(), space, point))


def plan_store_point(view: View, space: str, point: StoredPoint) -> StorePointPlan:
    """The entry of an index with one more operating point."""
    entry = view.snapshot.existing(IndexEntry, space)
    points = (*(old for old in entry.operating_points if old.target != point.target), point)
    return StorePointPlan(
        view, space, point, replace(entry, operating_points=points), is_stored=points == entry.operating_points
    )


def execute_store_point(context: Context, plan: StorePointPlan) -> int:
    """Commit the point unless it is stored, and return the snapshot."""
    from retrodb.stages.transaction import Transaction  # a search needs none

    number = plan.view.snapshot.number
    if plan.is_stored:
        return number
    transaction = Transaction.open(
        context,
        plan.view,
        "bench recall",
        conflict_keys.operating_point(plan.space),
        plan={"version": STAGE_VERSION, "space": plan.space, "snapshot": number, "point": plan.point},
        arguments=plan.point,
        run_command="operating-point",
    )
    transaction.set_entry(plan.space, plan.entry)
    return transaction.commit().number


# Lists that a search of L lists reads for recall@10 of 0.95. Up to 16,384 lists they were measured in November 2026: 88,649
# vectors of real text (all-MiniLM-L6-v2), 2,000 of them as queries without their own documents, exact distances inside the lists.
# A recall of 0.90 takes half as many. Beyond, they are the upper ends of what growth by groups of lists predicts, 260 to 380 at
# 2^20 and 590 to 860 at 2^22: nobody has measured so many lists. An index of at most 8 lists is read whole.
_MEASURED_PROBES = ((8, 8), (512, 39), (2_048, 93), (4_096, 138), (16_384, 230), (1 << 20, 380), (1 << 22, 860))


def default_nprobe(num_lists: int) -> int:
    """Lists that a search reads where no operating point is stored: about as many as a recall@10 of 0.95 takes on texts.

    Between the numbers of lists of the table, and beyond its last one, both logarithms are interpolated.
    """
    if num_lists <= _MEASURED_PROBES[0][0]:
        return num_lists
    table = np.log2(np.array(_MEASURED_PROBES, dtype=np.float64))
    after = min(int(np.searchsorted(table[:, 0], math.log2(num_lists))), len(table) - 1)
    (low, low_probes), (high, high_probes) = table[after - 1], table[after]
    slope = (high_probes - low_probes) / (high - low)
    return min(num_lists, round(float(2 ** (low_probes + slope * (math.log2(num_lists) - low)))))


def candidate_cap(num_lists: int, nprobe: int) -> int:
    """Lists that a row reads at most when it finds too few neighbours; 0: all, in an index of few lists or an exact search."""
    cap = max(_LEAST_CAP, PROBED_NEXT * nprobe)
    return 0 if nprobe == 0 or num_lists <= cap else cap


def point_reaching(lists_QA: Int32Array, true_lists_QK: Int64Array, num_lists: int, target: float) -> OperatingPoint:
    """The fewest lists that reach a recall on a sample of queries; the most that were measured where none does.

    Args:
        lists_QA: each query's nearest lists by closeness.
        true_lists_QK: the list that holds each exact neighbour; -1 where there is none.
        target: wanted recall.
    """
    if not (true_lists_QK >= 0).any():
        return OperatingPoint(lists_QA.shape[1], 1.0)
    curve = recall_curve(lists_QA, true_lists_QK.astype(np.int32), np.zeros(num_lists, dtype=np.int64))
    point = next((point for point in curve if point.recall.mean >= target), curve[-1])
    return OperatingPoint(point.nprobe, round(point.recall.mean, 4))


def routed_point(
    lists_QA: Int32Array, true_lists_QK: Int64Array, sizes_L: Int64Array, num_ranges: int, target: float
) -> OperatingPoint:
    """The routing that reaches a recall on a sample of queries with the fewest ranges of lists, as `point_reaching` does without.

    Without any true neighbour there is nothing to learn, and the point has no routing.

    Args:
        sizes_L: vectors in each list.
        num_ranges: ranges that the lists are cut into.
    """
    point = point_reaching(lists_QA, true_lists_QK, len(sizes_L), target)
    if not (true_lists_QK >= 0).any():
        return point
    reachable = min(target, point.recall - 1e-4)  # which was rounded
    learned = learned_routing(lists_QA, true_lists_QK, sizes_L, num_ranges, point.nprobe, reachable)
    return OperatingPoint(learned.nprobe, round(learned.recall, 4), learned.routing)


def home_lists(view: View, space: str, ids: Int64Array) -> Int64Array:
    """The list that holds each chunk (any shape); -1 for -1. Reads these rows of the parts, and nothing else of them."""
    lists, flat = np.full(ids.size, -1, dtype=np.int64), ids.ravel()
    files = [record for record in view.manifest.files("parts", space) if record.path.endswith(f"/{LISTS_FILE}")]
    for hit in Coverage(files, view.files).lookup(flat):
        lists[hit.where] = view.files.array(hit.record)[hit.positions]
    return lists.reshape(ids.shape)
