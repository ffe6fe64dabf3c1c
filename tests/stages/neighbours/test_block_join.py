"""A join keeps its memory limit, whatever the number of rows, or names the least that it needs."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from retrodb.ann.exclusion import Exclusion
from retrodb.ann.part import build_part, open_part
from retrodb.ann.rerank import LivePart
from retrodb.ann.routing import Probes
from retrodb.ann.training import train
from retrodb.errors import NotEnoughMemory
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.memory import MIB
from retrodb.stages.neighbours.block_join import JoinHardware, join_rows
from retrodb.stages.neighbours.join_memory import LEAST_BLOCK_ROWS, JoinSize
from retrodb.view.view import SELF, View

VECTORS = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float16)


class ManyRows:
    """A view of as many query rows as one asks for."""

    def vectors(self, space: str, rows: Int64Array, queries: str = SELF) -> AnyArray:
        return VECTORS[rows % len(VECTORS)]


def peak_bytes(num_rows: int, parts: list[LivePart], codebook: Any, memory_bytes: int) -> int:
    rows, exclusion = np.arange(num_rows), Exclusion.of(num_rows)
    tracemalloc.start()
    hardware = JoinHardware(memory_bytes=memory_bytes)
    ids, _ = join_rows(
        cast(View, ManyRows()), "space", "mine", rows, parts, codebook, Probes(2), exclusion, 10, hardware
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (ids[:, 0] == rows % len(VECTORS)).all()
    return peak


def size_of(num_rows: int) -> JoinSize:
    return JoinSize(
        dim=64, num_lists=16, nprobe=2, width=10, num_kinds=0, database_rows=len(VECTORS), largest_part=len(VECTORS),
        task_rows=num_rows, threads=1,
    )  # fmt: skip


def test_the_peak_memory_of_a_join_keeps_the_limit(tmp_path: Path) -> None:
    codebook = train(VECTORS, "IVF16,SQ8", 0, "squared_l2")
    build_part(VECTORS, codebook, tmp_path)
    parts = [LivePart(open_part(tmp_path), np.arange(len(VECTORS)), VECTORS.__getitem__)]
    peak_bytes(100, parts, codebook, 1 << 30)  # compiles
    for num_rows in (40_000, 160_000):
        size = size_of(num_rows)
        process = size.fixed_bytes - size.database_bytes - size.task_bytes  # which tracemalloc does not see
        for limit in (size.least_bytes, size.least_bytes + 64 * MIB):
            assert peak_bytes(num_rows, parts, codebook, limit) < limit - process + 32 * MIB


def test_a_join_refuses_a_limit_with_small_blocks_and_names_the_least() -> None:
    size = size_of(1_000_000)
    least = size.least_bytes
    assert size.block_rows(least) >= LEAST_BLOCK_ROWS
    with pytest.raises(NotEnoughMemory, match=r"a join with 4,000 vectors .* needs at least (\d+)MiB") as caught:
        size.block_rows(least - 1)
    assert f"Give --memory {-(-least // MIB)}MiB or more." in str(caught.value)


def test_a_larger_database_side_needs_more_and_leaves_smaller_blocks() -> None:
    small = size_of(100_000)
    large = replace(small, database_rows=10_000_000, largest_part=1_000_000)
    assert large.least_bytes > small.least_bytes + 10_000_000 * 9
    assert large.block_rows(4 << 30) < small.block_rows(4 << 30)
    assert large.with_nprobe(64).query_bytes > large.query_bytes
