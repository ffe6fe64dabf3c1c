"""A seeded sample of the rows of many files, drawn by file: the planner has two numbers for each file, and never all rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from retrodb.format.arrays import Int64Array


def sample_sizes(num_rows: Sequence[int], size: int, seed: int) -> list[int]:
    """How many rows a sample takes from each file: every row of all files has the same chance.

    This is systematic sampling with a random start: the sizes add up to `size`, or to all rows where there are fewer, and each
    differs by less than one from its exact proportion.

    Args:
        num_rows: of each file.
        size: of the sample.
    """
    total = sum(num_rows)
    if not total:
        return [0] * len(num_rows)
    size = min(size, total)
    start = int(np.random.default_rng(seed).integers(total))
    taken = [(end * size + start) // total for end in accumulate(num_rows, initial=0)]
    return [after - before for before, after in pairwise(taken)]


def drawn_positions(num_rows: int, size: int, seed: int, first_chunk: int) -> Int64Array:
    """(size,) int64, ascending: the positions of the drawn rows among all rows of a file.

    Args:
        first_chunk: of the file, so that equally long files do not have the same positions drawn.
    """
    if size == num_rows:
        return np.arange(num_rows, dtype=np.int64)
    drawn = np.random.default_rng([seed, first_chunk]).choice(num_rows, size, replace=False)
    return np.sort(drawn).astype(np.int64)
