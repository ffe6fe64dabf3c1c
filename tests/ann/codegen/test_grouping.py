from __future__ import annotations

import numpy as np
import pytest

from retrodb.ann.codegen.grouping import group_by_list, group_by_list_portable, sum_by_list, sum_by_list_portable


@pytest.mark.parametrize("seed", range(8))
def test_groups_equal_their_portable_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    num_rows, width = int(random.integers(0, 30)), int(random.integers(0, 5))
    probes = random.integers(-1, 6, (num_rows, width)).astype(np.int32)
    first, stop = sorted(random.integers(0, num_rows + 1, 2).tolist())
    groups, expected = (group(probes, first, stop, 7) for group in (group_by_list, group_by_list_portable))
    assert groups.offsets_L1.tolist() == expected.offsets_L1.tolist()
    assert groups.rows_M.tolist() == expected.rows_M.tolist()
    assert all((probes[groups.members(list_)] == list_).any(axis=1).all() for list_ in range(7))


def test_sums_equal_their_portable_definition() -> None:
    random = np.random.default_rng(0)
    lists, vectors = random.integers(0, 5, 300), random.standard_normal((300, 7)).astype(np.float32)
    by_kernel, by_definition = np.zeros((6, 7)), np.zeros((6, 7))
    sum_by_list(lists, vectors, by_kernel)
    sum_by_list_portable(lists, vectors, by_definition)
    assert by_kernel.tobytes() == by_definition.tobytes()
