"""The vectors of a space by chunk id, whether they are stored or only their codes are.

A space that was embedded with `--no-keep-vectors` has the int8 codes of its index parts and nothing else; what is read then is
code times scale, about 0.99 of whose ten nearest are the vectors' own (`codes_recall` of the index entry has the figure).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodb.ann.part import Part
from retrodb.ann.rerank import LivePart
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.view import SELF, View


def keeps_vectors(view: View, space: str) -> bool:
    """Whether a space has its vectors, not only codes."""
    return bool(view.snapshot.entry("space", space)["params"].get("keep_vectors", True))


def decode(part: Part, rows: Int64Array) -> AnyArray:
    """Vectors (n, D) float32 of a part's rows from its int8 codes."""
    places = part.place_N[rows]
    codes, scales = part.codes_ND[places], part.scales_N2[places, 0]
    vectors: AnyArray = codes.astype(np.float32) * scales[:, None]
    return vectors


def vectors_of(view: View, space: str, ids: Int64Array, parts: Sequence[LivePart], query_set: str = SELF) -> AnyArray:
    """Vectors (Q, D) of rows of a query set: the stored ones, or what the space's parts say where none are kept."""
    if query_set != SELF or keeps_vectors(view, space):
        return view.vectors(space, ids, query_set)
    vectors = np.zeros((len(ids), view.snapshot.entry("space", space)["dimension"]), dtype=np.float32)
    for part in parts:
        if len(part.ids_N):
            place = np.minimum(np.searchsorted(part.ids_N, ids), len(part.ids_N) - 1)
            here = np.flatnonzero(part.ids_N[place] == ids)
            vectors[here] = part.fetch(place[here])
    return vectors
