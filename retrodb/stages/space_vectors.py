"""The vectors of a space by chunk id, whether they are stored or only their codes are.

A space that was embedded with `--no-keep-vectors` has the int8 codes of its index parts and nothing else; what is read then is
code times scale, about 0.99 of whose ten nearest are the vectors' own (`codes_recall` of the index entry has the figure).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from retrodb.ann.part import Part
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.view import View


def keeps_vectors(view: View, space: str) -> bool:
    """Whether a space has its vectors, not only codes."""
    return bool(view.snapshot.entry("space", space)["params"].get("keep_vectors", True))


def decode(part: Part, rows: Int64Array) -> AnyArray:
    """Vectors (n, D) float32 of a part's rows from its int8 codes."""
    places = _places(part)[rows]
    codes, scales = part.codes_ND[places], part.scales_N2[places, 0]
    return codes.astype(np.float32) * scales[:, None]


@lru_cache(maxsize=16)
def _places(part: Part) -> Int64Array:
    """Where each row of a part stands in its store, which is sorted by list."""
    places = np.empty(len(part.order_N), dtype=np.int64)
    places[part.order_N] = np.arange(len(places))
    return places
