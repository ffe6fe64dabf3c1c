"""Which index parts to merge: a pure function of their sizes."""

from __future__ import annotations

from collections.abc import Sequence

MERGE_FACTOR = 8  # parts of one tier that become one of the next: a row is rewritten log8(N / SMALLEST) times
SMALLEST = 1 << 14  # parts up to this size are of the lowest tier
LARGEST = 1 << 26  # rows of a merged part: a row is rewritten at most four times, however large the database grows


def choose_merges(
    sizes: Sequence[int], merge_factor: int = MERGE_FACTOR, largest: int = LARGEST
) -> list[tuple[int, ...]]:
    """Runs of neighbouring parts (positions in `sizes`) to merge; parts are given in the order of their chunk ids.

    A part's tier is the power of `merge_factor` that it fits in. A run of neighbours of at most some tier is merged once
    `merge_factor` of them are of that tier; lower tiers are tried first, and what they give counts in the higher ones, so
    that nothing is written twice. Only neighbours merge, so that ids stay ascending within a part.
    """
    groups: list[tuple[int, ...]] = [(place,) for place in range(len(sizes))]
    while True:
        totals = [sum(sizes[place] for place in group) for group in groups]
        runs = [run for run in _one_round(totals, merge_factor) if sum(totals[at] for at in run) <= largest]
        if not runs:
            return [group for group in groups if len(group) > 1]
        for run in reversed(runs):
            groups[run[0] : run[-1] + 1] = [tuple(place for at in run for place in groups[at])]


def _one_round(sizes: Sequence[int], merge_factor: int) -> list[tuple[int, ...]]:
    tiers = [_tier(size, merge_factor) for size in sizes]
    merges: list[tuple[int, ...]] = []
    taken: set[int] = set()
    for tier in sorted(set(tiers)):
        run: list[int] = []
        for place, other in enumerate(tiers):
            if other > tier or place in taken:
                run = []
                continue
            run.append(place)
            if sum(tiers[at] == tier for at in run) == merge_factor:
                merges.append(tuple(run))
                taken.update(run)
                run = []
    return sorted(merges)


def _tier(size: int, merge_factor: int) -> int:
    tier = 0
    while size > SMALLEST * merge_factor**tier:
        tier += 1
    return tier
