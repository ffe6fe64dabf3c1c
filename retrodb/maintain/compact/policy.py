"""Which shards to write anew: a pure function of their sizes and of what is deleted in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from retrodb.format import MAX_SHARD_CHUNKS


@dataclass(frozen=True)
class ShardState:
    """What the policy knows of a shard."""

    source: str
    first_chunk: int
    num_chunks: int  # length of its range
    num_rows: int  # of these, the ones that its files hold
    num_deleted: int  # of these, the ones that are deleted
    must_go: bool = False  # whether some row has to go, be it the only one


def choose_compactions(
    shards: Sequence[ShardState], min_deleted: float, max_chunks: int = MAX_SHARD_CHUNKS
) -> list[range]:
    """Runs of shards (positions in `shards`) that become one shard each; a run of one only drops rows.

    A shard is written anew when at least a share `min_deleted` of its rows is deleted, or when neighbours of one source join it.
    Neighbours join when none of them holds more than half of the rows that are left: so a row is written again for this
    only when its shard at least doubles, and no shard is written again for a small one that was added beside it.

    Args:
        shards: by ascending first chunk.
        max_chunks: no range grows beyond it.
    """
    chosen: list[range] = []
    for run in _neighbours(shards, max_chunks):
        for joined in _balanced(shards, run):
            if len(joined) > 1 or _is_worn(shards[joined[0]], min_deleted):
                chosen.append(joined)
    return chosen


def _neighbours(shards: Sequence[ShardState], max_chunks: int) -> Iterator[range]:
    """The shards in runs of one source whose ranges touch, each as long as the limit lets it be."""
    starts = [0]
    for place, (before, shard) in enumerate(pairwise(shards), 1):
        touches = before.first_chunk + before.num_chunks == shard.first_chunk and before.source == shard.source
        length = shard.first_chunk + shard.num_chunks - shards[starts[-1]].first_chunk
        if not touches or length > max_chunks:
            starts.append(place)
    yield from (range(start, end) for start, end in pairwise([*starts, len(shards)]) if start < end)


def _balanced(shards: Sequence[ShardState], run: range) -> Iterator[range]:
    """A run, cut at every shard that outweighs the others."""
    kept = [shards[place].num_rows - shards[place].num_deleted for place in run]
    largest = max(range(len(run)), key=lambda index: kept[index])
    if len(run) == 1 or 2 * kept[largest] <= sum(kept):
        yield run
        return
    for part in (run[:largest], run[largest : largest + 1], run[largest + 1 :]):
        if part:
            yield from _balanced(shards, part)


def _is_worn(shard: ShardState, min_deleted: float) -> bool:
    return shard.must_go or 0 < shard.num_deleted >= min_deleted * shard.num_rows
