"""Links between the equal rows of a list against their portable definition."""

from __future__ import annotations

import numpy as np
import pytest

from retrodb.ann.codegen.equal_rows import ListedRows, link_equal_rows, link_equal_rows_portable, next_equal


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("num_rows", "num_distinct", "dim"), [(0, 1, 4), (1, 1, 4), (60, 1, 8), (300, 7, 33), (300, 200, 64)]
)
def test_links_equal_their_portable_definition(seed: int, num_rows: int, num_distinct: int, dim: int) -> None:
    random = np.random.default_rng(seed)
    chosen = random.integers(0, num_distinct, num_rows)
    codes = random.integers(-127, 128, (num_distinct, dim)).astype(np.int8)[chosen]
    scales = np.ones((num_rows, 2), np.float32)
    scales[:, 0] = random.integers(1, 3, num_rows)  # equal codes with another scale are another vector
    content = random.integers(-1, 2, num_rows)  # and so are rows of other exclusion keys
    rows = ListedRows(codes, scales, (content, np.empty(0, np.int64)) if seed % 2 else (np.empty(0, np.int64),))
    start = num_rows // 4
    by_kernel, by_definition = np.full((2, num_rows), 99, np.int32)
    link_equal_rows(start, num_rows, rows, by_kernel)
    link_equal_rows_portable(start, num_rows, rows, by_definition)
    assert by_kernel.tolist() == by_definition.tolist()
    assert (by_kernel[:start] == 99).all(), "other lists are left alone"
    seen = []
    for first in start + np.flatnonzero(by_kernel[start:] >= 0):
        position = int(first)
        while position >= 0:
            assert codes[position].tobytes() == codes[first].tobytes()
            assert seed % 2 == 0 or content[position] == content[first]
            seen.append(position)
            position = next_equal(position, by_kernel)
    assert sorted(seen) == list(range(start, num_rows)), "every row is in one chain"
    assert next_equal(3, np.empty(0, np.int32)) == -1
