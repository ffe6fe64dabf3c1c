"""Whether the codebook still fits what is added: measured at every add, compared with what it was trained on.

Canaries are a few chunks whose true neighbours are always known: each add compares them with the new chunks, and
with nothing else. The fraction of these neighbours in the lists that a search would read is the recall of its scan.

Legend: C canaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.part import Part, decode
from retrodb.ann.truth import Truth
from retrodb.format.arrays import Float32Array, Int64Array

# Beyond any of these limits retraining is recommended. The limits are choices, not measurements.
MAX_RESIDUAL_GROWTH = 1.10
MAX_IMBALANCE_GROWTH = 1.5  # a search of as many lists scans 1.5 times as many vectors
# More than 64 canaries with 10 neighbours vary by at recall 0.95: 1.96 * sqrt(0.95 * 0.05 / 640) = 0.017.
MAX_RECALL_LOSS = 0.02
CANARY_K = 10
SAMPLE_ROWS = 65_536  # of a part, for the residual: 65,536 * 384 dimensions * 4 bytes (float32) = 100 MB
BLOCK_ROWS = 16_384  # decoded at once: 16,384 * 384 dimensions * 4 bytes (float32) = 25 MB


@dataclass(frozen=True)
class Drift:
    """How vectors are distributed over the lists of a codebook."""

    residual: float  # mean squared distance of vectors to their own list's centroid
    imbalance: float  # scanned vectors relative to equal lists: L * sum(size^2) / N^2; 1 when all lists are equal
    canary_recall: float | None  # None: no canary has a neighbour

    def reasons(self, at_training: Drift) -> list[str]:
        """Why retraining is recommended; empty when it is not."""
        reasons = []
        if self.residual > MAX_RESIDUAL_GROWTH * at_training.residual:
            reasons.append(f"residual {self.residual / max(at_training.residual, 1e-12) - 1:+.0%}")
        if self.imbalance > MAX_IMBALANCE_GROWTH * at_training.imbalance:
            reasons.append(f"imbalance x{self.imbalance / at_training.imbalance:.1f}")
        if None not in (self.canary_recall, at_training.canary_recall):
            loss = float(at_training.canary_recall or 0) - float(self.canary_recall or 0)
            if loss > MAX_RECALL_LOSS:
                reasons.append(f"canary recall {-100 * loss:+.1f} points")
        return reasons


def truth_in_part(canaries_CD: Float32Array, canary_ids: Int64Array, part: Part, ids_N: Int64Array) -> Truth:
    """The canaries' nearest in a part, themselves excluded, by its int8 codes, which are precise enough for this measure."""
    itself = Exclusion.of(len(canary_ids), chunk=canary_ids)
    ids, distances = exact_topk(canaries_CD, _decoded(part, ids_N), CANARY_K, part.meta.metric, itself)
    rows = np.minimum(np.searchsorted(ids_N, ids), len(ids_N) - 1)
    return Truth(ids, distances, np.where(ids >= 0, part.lists_N[rows], -1))


def _decoded(part: Part, ids_N: Int64Array) -> Iterator[Block]:
    for start in range(0, part.meta.rows, BLOCK_ROWS):
        ids = ids_N[part.order_N[start : start + BLOCK_ROWS]]
        yield Block(ids, _vectors(part, slice(start, start + BLOCK_ROWS)), None, {"chunk": ids})


def _vectors(part: Part, positions: slice[int, int | None, int | None]) -> Float32Array:
    return decode(part.codes_ND[positions], part.scales_N2[positions], part.centre_D)


def residual(part: Part, codebook: Codebook) -> float:
    """Mean squared distance of a part's vectors (an even sample of them) to their own centroids."""
    positions = slice(0, None, -(-part.meta.rows // SAMPLE_ROWS))
    list_N = part.list_of(np.arange(part.meta.rows)[positions])
    residual_ND = codebook.transform(_vectors(part, positions)) - codebook.centroids_LD[list_N]
    return float((residual_ND.astype(np.float64) ** 2).sum(axis=1).mean())


def imbalance(list_sizes_L: Int64Array) -> float:
    """1 for equal lists; a search scans this many times as many vectors as it would in equal lists."""
    sizes_L = list_sizes_L.astype(np.float64)
    return float(len(sizes_L) * (sizes_L**2).sum() / max(sizes_L.sum(), 1) ** 2)
