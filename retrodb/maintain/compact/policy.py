"""Which shards to rewrite: a pure function of their sizes and of what is deleted in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from retrodb.format import MAX_SHARD_CHUNKS


@dataclass(frozen=True)
class ShardState:
    """What the policy knows about a shard."""

    source: str
    first_chunk: int
    num_chunks: int  # length of its range
    num_rows: int  # rows that its files hold
    num_deleted: int  # rows of these that are deleted
    has_rows_to_drop: bool = False  # whether it is rewritten, however few of its rows are deleted


def choose_compactions(
    shards: Sequence[ShardState], min_deleted: float, max_chunks: int = MAX_SHARD_CHUNKS
) -> list[range]:
    """Runs of shards (indices of `shards`) that become one shard each. A run of one shard only drops rows.

    A shard is rewritten when at least the fraction `min_deleted` of its rows is deleted, or when it is joined with adjacent
    shards of its source. Adjacent shards are joined when none of them holds more than half of the rows that remain. So a row
    is rewritten by a join only when its shard at least doubles, and no shard is rewritten because a small one was added
    after it.

    Args:
        shards: by ascending first chunk.
        max_chunks: the longest range that a join may make.
    """
    chosen: list[range] = []
    for run in _adjacent_runs(shards, max_chunks):
        for joined in _balanced(shards, run):
            if len(joined) > 1 or _needs_rewrite(shards[joined[0]], min_deleted):
                chosen.append(joined)
    return chosen


def _adjacent_runs(shards: Sequence[ShardState], max_chunks: int) -> Iterator[range]:
    """Runs of shards of one source with adjacent ranges, each as long as the limit allows."""
    starts = [0]
    for index, (previous, shard) in enumerate(pairwise(shards), 1):
        is_adjacent = previous.first_chunk + previous.num_chunks == shard.first_chunk
        length = shard.first_chunk + shard.num_chunks - shards[starts[-1]].first_chunk
        if not is_adjacent or previous.source != shard.source or length > max_chunks:
            starts.append(index)
    yield from (range(start, end) for start, end in pairwise([*starts, len(shards)]) if start < end)


def _balanced(shards: Sequence[ShardState], run: range) -> Iterator[range]:
    """A run, split around every shard that holds more rows than all others together."""
    num_kept = [shards[index].num_rows - shards[index].num_deleted for index in run]
    largest = max(range(len(run)), key=lambda offset: num_kept[offset])
    if len(run) == 1 or 2 * num_kept[largest] <= sum(num_kept):
        yield run
        return
    for part in (run[:largest], run[largest : largest + 1], run[largest + 1 :]):
        if part:
            yield from _balanced(shards, part)


def _needs_rewrite(shard: ShardState, min_deleted: float) -> bool:
    return shard.has_rows_to_drop or 0 < shard.num_deleted >= min_deleted * shard.num_rows
