"""The memory of a join does not depend on the number of rows."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, cast

import numpy as np

from retrodb.ann.codebook import train
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.part import build_part, open_part
from retrodb.ann.rerank import LivePart
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.stages.neighbours.block_join import LEAST_MEMORY, JoinHardware, join_rows
from retrodb.view.view import View

VECTORS = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float16)


class ManyRows:
    """A view of as many query rows as one asks for."""

    def vectors(self, space: str, rows: Int64Array, queries: str) -> AnyArray:
        return VECTORS[rows % len(VECTORS)]


def peak_bytes(num_rows: int, parts: list[LivePart], codebook: Any) -> int:
    rows, exclusion = np.arange(num_rows), Exclusion.of(num_rows)
    tracemalloc.start()
    hardware = JoinHardware(memory_bytes=LEAST_MEMORY)
    ids, distances = join_rows(
        cast(View, ManyRows()), "space", "mine", rows, parts, codebook, 2, exclusion, 10, hardware
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (ids[:, 0] == rows % len(VECTORS)).all()
    return peak - ids.nbytes - distances.nbytes


def test_the_peak_memory_of_a_join_does_not_grow_with_the_table(tmp_path: Path) -> None:
    codebook = train(VECTORS, "IVF16,SQ8", 0, "squared_l2")
    build_part(VECTORS, codebook, tmp_path)
    parts = [LivePart(open_part(tmp_path), np.arange(len(VECTORS)), VECTORS.__getitem__)]
    peak_bytes(100, parts, codebook)  # compiles
    small, large = (peak_bytes(rows, parts, codebook) for rows in (40_000, 160_000))
    assert small < LEAST_MEMORY
    assert large < 1.2 * small
