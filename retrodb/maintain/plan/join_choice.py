"""How the rows of a planned table are joined: lists and ranges of lists of a row, pairs, exchanged bytes, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from retrodb.ann.join import RERANK_MARGIN
from retrodb.ann.routing import ROUTED_BYTES
from retrodb.engine.task_memory import MAIN_MIB, memory_of
from retrodb.errors import UsageError
from retrodb.maintain.plan.request import PlanRequest, shape_of
from retrodb.maintain.plan.sizes import DatabaseSize
from retrodb.memory import MIB, with_caches
from retrodb.stages.index.operating_point import default_nprobe
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.stages.neighbours.table_rows import TASK_ROWS

PIECE_PRODUCTS = 7_000
"""Code products that take as long as all that a row does at a piece of a list but its products: 0.15 microseconds. Each part of
an index has a piece of a list, however short. Joins of 33,000 to 163,000 rows in 1 to 6 parts (2026-11-28-plan.md)."""


@dataclass(frozen=True)
class JoinChoice:
    """How the rows of a table are joined."""

    nprobe: int  # lists of a row; 0: compared with every vector
    num_ranges: int  # of lists
    ranges_per_row: float  # that a row is sent to, its home range included
    pairs: float  # of a row and a vector, of all rows
    pieces: float  # of lists, of which each part of the index has one, that rows visit
    exchanged_bytes: float
    memory_bytes: int  # of a process


# Ranges that a row of real text is sent to, of so many ranges, when it reads 66 lists: a simulation on 88,649 vectors by
# all-MiniLM-L6-v2. It grows with the lists by a power of 0.35: 8.7 of 64 ranges for 30 lists (measured: 8.7), 4.4 of 16
# (measured: 5.1; 2026-11-28-routing.md), and 13.9 of 64 for 113 lists (simulated: 13.4).
_RANGES_PER_ROW = ((1, 1.0), (4, 2.9), (16, 5.8), (64, 11.5), (256, 22.3))
_RANGES_AT_LISTS, _LISTS_POWER = 66, 0.35
# Hashing encoders have no topics: 12.0 of 16 and 24.6 of 64 ranges for 56 lists (2026-11-28-list-ranges.md), 15.4 of 16 for 125.
_WITHOUT_TOPICS = 2.1
# A routing sends a row to about half as many ranges, in which it reads more lists: so many times the products, by the number of
# routed ranges. 2.4 of 16 ranges instead of 5.1, and 4.9 of 64 instead of 8.7 (2026-11-28-routing.md).
_ROUTED_RANGES = 0.5
_ROUTED_PRODUCTS = ((16, 2.1), (64, 1.6))


def ranges_per_row(num_ranges: int, nprobe: int, *, is_routed: bool = False, has_topics: bool = True) -> float:
    """F: to how many of so many ranges of lists a row is sent, its home range included.

    Args:
        nprobe: lists that a row reads without a routing.
        has_topics: whether neighbouring lists are about the same, as with a model.
    """
    if num_ranges == 1:
        return 1.0
    spread = math.pow(nprobe / _RANGES_AT_LISTS, _LISTS_POWER) * (1.0 if has_topics else _WITHOUT_TOPICS)
    per_row = _interpolated(_RANGES_PER_ROW, num_ranges) * spread
    return max(1.0, min(num_ranges, nprobe, per_row) * (_ROUTED_RANGES if is_routed else 1.0))


def _interpolated(table: Sequence[tuple[int, float]], at: int) -> float:
    for (low, few), (high, many) in pairwise(table):
        if at <= high:
            return float(few * (many / few) ** (math.log(max(at, low) / low) / math.log(high / low)))
    return table[-1][1]


def exchanged_row_bytes(dimension: int, nprobe: int, width: int, per_row: float) -> float:
    """Bytes that tasks leave for each other for a row that is sent to `per_row` ranges, its home range included.

    Its vector, lists and excluded ids; the nearest rows with a margin; the result. For each other range vector and limits again,
    its lists there, and what is found. Within 8% of what was measured with 64 and 384 dimensions and 1 to 24 ranges
    (2026-11-28-list-ranges.md, 2026-11-28-routing.md).
    """
    vector, lists = 2 * dimension, 4 * nprobe
    at_home = vector + lists + 34 + 12 * (width + RERANK_MARGIN) + 8 + 12 * width
    return at_home + lists * (1 - 1 / per_row) + (per_row - 1) * (vector + 81)


def scanned_products(dimension: int, pairs: float, pieces: float) -> float:
    """Code products of a scan, with what else it costs to visit pieces of lists."""
    return pairs * dimension + PIECE_PRODUCTS * pieces


def choose_join(request: PlanRequest, size: DatabaseSize, probes_factor: float) -> JoinChoice:
    """How the rows are joined within the memory of a worker, or within the least memory that suffices where that is more.

    Raises:
        UsageError: rows cannot be routed to so many ranges of so few lists.
    """
    if size.num_lists < request.route_ranges:
        has = f"only {size.num_lists:,} lists" if size.num_lists > 1 else "1 list, which cannot be split"
        remedy = f"Give at most {size.num_lists}." if size.num_lists > 1 else "Leave it out."
        raise UsageError(
            f"--route-ranges {request.route_ranges}, but the index '{size.factory}' has {has}", remedy=remedy
        )
    wanted, nprobe = default_nprobe(size.num_lists) * probes_factor, 0
    if size.num_lists > 1:
        routed = _interpolated(_ROUTED_PRODUCTS, request.route_ranges) if request.route_ranges else 1.0
        nprobe = min(size.num_lists, max(1, round(wanted * routed)))
    join = JoinSize(
        dim=size.dimension,
        num_lists=size.num_lists,
        nprobe=nprobe,
        width=size.width,
        num_kinds=0,
        database_rows=size.vectors,
        largest_part=max(size.part_rows),
        task_rows=min(TASK_ROWS, size.shard_chunks),
        threads=1,
        on_cpu=request.gpu is None,
        routed_bytes=ROUTED_BYTES if request.route_ranges else 0,
    )
    memory_bytes = request.worker_memory - MAIN_MIB * MIB
    num_ranges = join.num_ranges(memory_bytes)
    if num_ranges == 1:
        limit = max(memory_bytes, join.least_bytes)
        block = min(join.task_rows, join.block_rows(limit))
        memory = with_caches(join.fixed_bytes + block * join.query_bytes)
    else:
        memory = memory_of("neighbours-home").of_task(0, join.range_bytes(num_ranges))
    has_topics, is_routed = shape_of(request).parameters > 0, request.route_ranges > 0
    per_row = ranges_per_row(num_ranges, max(1, round(wanted)), is_routed=is_routed, has_topics=has_topics)
    exchanged = exchanged_row_bytes(size.dimension, nprobe, size.width, per_row) if num_ranges > 1 else 0.0
    of_list = size.vectors / size.num_lists
    pairs = float(size.vectors) * (nprobe * of_list if nprobe else size.vectors)
    # A GPU puts the pieces of a list together.
    pieces = 0.0 if request.gpu else float(size.vectors) * nprobe * min(len(size.part_rows), of_list)
    return JoinChoice(nprobe, num_ranges, per_row, pairs, pieces, exchanged * size.vectors, memory)
