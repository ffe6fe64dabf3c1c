"""Which index parts to merge: a pure function of their sizes."""

from __future__ import annotations

from collections.abc import Sequence

MERGE_FACTOR = 8  # parts of one tier that become one of the next: a row is rewritten log8(N / smallest part) times
SMALLEST = 1 << 14  # parts below this size count as this size


def choose_merges(sizes: Sequence[int], merge_factor: int = MERGE_FACTOR) -> list[tuple[int, ...]]:
    """Runs of neighbouring parts (positions in `sizes`) to merge; parts are given in the order of their chunk ids.

    Tiers are powers of `merge_factor`; a run of `merge_factor` neighbours of one tier or below is merged. Only
    neighbours merge, so that ids stay ascending within a part.
    """
    merges: list[tuple[int, ...]] = []
    run: list[int] = []
    for place, size in enumerate(sizes):
        if run and _tier(size, merge_factor) > max(_tier(sizes[at], merge_factor) for at in run):
            run = []  # a bigger part ends the run: small parts are not worth its rewriting
        run.append(place)
        top = max(_tier(sizes[at], merge_factor) for at in run)
        same_tier = [at for at in run if _tier(sizes[at], merge_factor) == top]
        if len(same_tier) >= merge_factor:
            merges.append(tuple(run))
            run = []
    return merges


def _tier(size: int, merge_factor: int) -> int:
    tier = 0
    while size > SMALLEST * merge_factor**tier:
        tier += 1
    return tier
