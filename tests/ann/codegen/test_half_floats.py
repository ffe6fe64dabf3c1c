from __future__ import annotations

import numpy as np

from retrodb.ann.codegen.half_floats import gather_halves, gather_halves_portable


def test_halves_become_floats_bit_for_bit_and_rows_that_are_not_finite_are_found() -> None:
    every_half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every_half[np.isfinite(every_half)][: 1 << 15].reshape(-1, 64)
    out, expected = (np.empty(finite.shape, dtype=np.float32) for _ in range(2))
    rows = np.arange(len(finite))[::-1].copy()
    assert gather_halves(finite.view(np.int16), rows, out) == -1
    assert gather_halves_portable(finite.view(np.int16), rows, expected) == -1
    assert out.tobytes() == expected.tobytes() == finite[::-1].astype(np.float32).tobytes()
    for bad in (np.inf, -np.inf, np.nan):
        spoiled = finite.copy()
        spoiled[5, 60] = bad
        position = gather_halves(spoiled.view(np.int16), rows, out)
        assert rows[position] == 5
        assert position == gather_halves_portable(spoiled.view(np.int16), rows, expected)
