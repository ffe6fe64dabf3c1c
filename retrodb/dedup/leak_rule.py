"""When an overlap is a leak: `jaccard>=0.8` (the paper's rule) or `containment>=X`, compared in whole numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array

if TYPE_CHECKING:
    from retrodb.dedup.exact_scan import Hits

_SYNTAX = re.compile(r"\s*(jaccard|containment)\s*>=\s*(\d(?:\.\d{1,6})?)\s*")


@dataclass(frozen=True)
class Rule:
    """A measure and the least value of it that makes a hit a leak."""

    measure: Literal["jaccard", "containment"]
    threshold: Fraction  # above 0, at most 1; exact, so that 0.8 is 4/5

    def holds(self, part: Int64Array, whole: Int64Array) -> NDArray[np.bool_]:
        """Whether each part / whole reaches the threshold p/q, computed as q part >= p whole: nothing is rounded."""
        p, q = self.threshold.as_integer_ratio()
        return part * q >= whole * p

    def decide(self, hits: Hits) -> NDArray[np.bool_]:
        """(H,) whether each hit is a leak."""
        if self.measure == "jaccard":
            return self.holds(hits.intersection, hits.document_size + hits.item_size - hits.intersection)
        return (hits.counted > 0) & self.holds(hits.counted, hits.counted_size)

    def __str__(self) -> str:
        return f"{self.measure}>={float(self.threshold):g}"


def parse_rule(text: str) -> Rule:
    """Read `jaccard>=0.8` or `containment>=0.5`; at most six decimals.

    Raises:
        UsageError: for anything else, or a threshold outside (0, 1].
    """
    match = _SYNTAX.fullmatch(text)
    threshold = Fraction(match[2]) if match else Fraction(0)
    if match is None or not 0 < threshold <= 1:
        raise UsageError(
            f"'{text}' is no rule", remedy="Write 'jaccard>=X' or 'containment>=X' with X above 0 and at most 1."
        )
    return Rule("jaccard" if match[1] == "jaccard" else "containment", threshold)
