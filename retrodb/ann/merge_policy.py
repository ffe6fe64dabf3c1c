"""Which index parts to merge: a pure function of their sizes."""

from __future__ import annotations

from collections.abc import Sequence

MERGE_FACTOR = 8  # parts of one tier that become one of the next: a row is rewritten log8(N / SMALLEST) times
SMALLEST = 1 << 14  # rows; parts up to this size are of the lowest tier
# Rows of a merged part, 2^26: four tiers, so a row is rewritten at most four times, however large the database grows.
LARGEST = SMALLEST * MERGE_FACTOR**4


def choose_merges(
    sizes: Sequence[int], merge_factor: int = MERGE_FACTOR, largest: int = LARGEST
) -> list[tuple[int, ...]]:
    """Runs of neighbouring parts (positions in `sizes`) to merge; parts are given in the order of their chunk ids.

    A part's tier is the power of `merge_factor` that it fits in. A run of neighbours up to one tier is merged once
    `merge_factor` of them are of that tier. Lower tiers are tried first, and their results count in the higher ones, so
    that nothing is written twice. Only neighbours merge, so that ids stay ascending within a part.
    """
    groups: list[tuple[int, ...]] = [(position,) for position in range(len(sizes))]
    while True:
        totals = [sum(sizes[position] for position in group) for group in groups]
        runs = [run for run in _one_round(totals, merge_factor) if sum(totals[number] for number in run) <= largest]
        if not runs:
            return [group for group in groups if len(group) > 1]
        for run in reversed(runs):
            groups[run[0] : run[-1] + 1] = [tuple(position for number in run for position in groups[number])]


def _one_round(sizes: Sequence[int], merge_factor: int) -> list[tuple[int, ...]]:
    tiers = [_tier(size, merge_factor) for size in sizes]
    merges: list[tuple[int, ...]] = []
    taken: set[int] = set()
    for tier in sorted(set(tiers)):
        run: list[int] = []
        for position, tier_of_part in enumerate(tiers):
            if tier_of_part > tier or position in taken:
                run = []
                continue
            run.append(position)
            if sum(tiers[member] == tier for member in run) == merge_factor:
                merges.append(tuple(run))
                taken.update(run)
                run = []
    return sorted(merges)


def _tier(size: int, merge_factor: int) -> int:
    tier = 0
    while size > SMALLEST * merge_factor**tier:
        tier += 1
    return tier
