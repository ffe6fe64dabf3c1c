"""How near a chunk is, as users see it: one number and one name for each metric, in every command, result and export.

Files and arrays of distances are another matter: there, smaller is always nearer (`ann/metric.py`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from retrodb.format.arrays import Float32Array
from retrodb.format.entries import Metric

Measure: TypeAlias = Literal["similarity", "squared_distance"]
"""The name of a score: inner product, greater is nearer; or squared Euclidean distance, smaller is nearer."""


def measure_of(metric: Metric) -> Measure:
    """The name of what `scores` gives."""
    return "similarity" if metric == "inner_product" else "squared_distance"


def scores(distances: Float32Array, metric: Metric) -> Float32Array:
    """The inner product (greater is nearer), or the squared distance (smaller is nearer)."""
    return -distances if metric == "inner_product" else distances
