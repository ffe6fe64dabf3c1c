"""Partial results merged into one."""

from __future__ import annotations

from collections.abc import Sequence

from retrodb.ann.codegen.insertion import insert_candidates
from retrodb.ann.topk import TopK, empty_topk


def merge_topk(partials: Sequence[TopK], k: int) -> TopK:
    """The k nearest of all partial results by (distance, id); the partial results name no id twice for one query.

    Equal to the k nearest of everything when each partial result holds the k nearest of its own rows.
    """
    best = empty_topk(partials[0][0].shape[0], k)
    for partial in partials:
        insert_candidates(partial, best)
    return best
