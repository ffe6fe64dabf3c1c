"""Whether the codebook still fits what is added: measured at every add, compared with its own training sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrodb.ann.codebook import Codebook
from retrodb.ann.metric import Vectors, check_vectors

MAX_RESIDUAL_GROWTH = 1.10  # from here on retraining pays (ANCHORS section 9: +10%)
MAX_IMBALANCE_GROWTH = 1.5  # likewise


@dataclass(frozen=True)
class Drift:
    """How vectors lie in the lists of a codebook."""

    residual: float  # mean squared distance to the own list's centroid
    imbalance: float  # scanned vectors relative to equal lists: L * sum(size^2) / N^2; 1 when all lists are equal

    def is_beyond(self, at_training: Drift) -> bool:
        """Whether retraining is due."""
        return (
            self.residual > MAX_RESIDUAL_GROWTH * at_training.residual
            or self.imbalance > MAX_IMBALANCE_GROWTH * at_training.imbalance
        )


def measure_drift(vectors_ND: Vectors, own_list_N: NDArray[np.int32], codebook: Codebook) -> Drift:
    """Residual and imbalance of vectors (a sample will do) under their own lists."""
    residuals_ND = codebook.transform(check_vectors(vectors_ND, codebook.dim)) - codebook.centroids_LD[own_list_N]
    return Drift(float((residuals_ND**2).sum(axis=1).mean()), imbalance(own_list_N, codebook.num_lists))


def imbalance(own_list_N: NDArray[np.int32], num_lists: int) -> float:
    """1 for equal lists; a search scans this many times as many vectors as it would in equal lists."""
    sizes_L = np.bincount(own_list_N, minlength=num_lists).astype(np.float64)
    return float(num_lists * (sizes_L**2).sum() / sizes_L.sum() ** 2)
