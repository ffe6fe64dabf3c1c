"""The leak rule: when an overlap is a leak or a near-duplicate.

It is `jaccard>=0.8` (the rule of Borgeaud et al. 2022) or `containment>=X`. Ratios are compared in whole numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from retrodb.errors import UsageError
from retrodb.format.arrays import BoolArray, Int64Array

if TYPE_CHECKING:
    from retrodb.dedup.exact_scan import Hits

_SYNTAX = re.compile(r"\s*(jaccard|containment)\s*>=\s*(\d(?:\.\d{1,6})?)\s*")


@dataclass(frozen=True)
class LeakRule:
    """A measure, and its lowest value at which a hit is a leak."""

    measure: Literal["jaccard", "containment"]
    threshold: Fraction  # above 0, at most 1; exact, so that 0.8 is 4/5

    def is_reached(self, part: Int64Array, whole: Int64Array) -> BoolArray:
        """Whether each part / whole is at least the threshold p / q, without rounding: q * part >= p * whole."""
        p, q = self.threshold.as_integer_ratio()
        return part * q >= whole * p

    def is_leak(self, hits: Hits) -> BoolArray:
        """(H,) whether each hit is a leak."""
        if self.measure == "jaccard":
            return self.is_reached(hits.intersection, hits.document_size + hits.item_size - hits.intersection)
        return (hits.counted > 0) & self.is_reached(hits.counted, hits.counted_size)

    def __str__(self) -> str:
        return f"{self.measure}>={float(self.threshold):g}"


def parse_rule(text: str) -> LeakRule:
    """Read `jaccard>=0.8` or `containment>=0.5`; at most six decimals.

    Raises:
        UsageError: it is not such a rule, or its threshold is outside (0, 1].
    """
    match = _SYNTAX.fullmatch(text)
    threshold = Fraction(match[2]) if match else Fraction(0)
    if match is None or not 0 < threshold <= 1:
        raise UsageError(
            f"'{text}' is not a rule", remedy="Write 'jaccard>=X' or 'containment>=X' with X above 0 and at most 1."
        )
    return LeakRule("jaccard" if match[1] == "jaccard" else "containment", threshold)
