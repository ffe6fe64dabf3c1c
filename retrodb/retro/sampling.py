"""Random samples of whole documents, drawn one shard at a time: no step has one value per row of all shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retrodb.format.arrays import Int64Array


def sample_by_shards(
    sizes: Sequence[int], draw: Callable[[int, int], Int64Array], max_chunks: int, seed: int
) -> Int64Array:
    """The rows of random documents of many shards, ascending in each shard and in the order of the shards.

    How many chunks each shard gives is drawn by the sizes. What a shard gives too much, because a document is never cut, the
    next one gives less, and what it cannot give is drawn from others. A shard that gives nothing is not read.

    Args:
        sizes: chunks of each shard; may be too large.
        draw: gives the rows of random documents of a shard until they have so many chunks. With a larger number it gives the
            same documents and more, and all of them when there are not so many.
        max_chunks: documents are drawn until they have this many chunks: at least one, unless this is 0 or there is none.
    """
    total = sum(sizes)
    wanted = min(max_chunks, total)
    if not wanted:
        return np.empty(0, dtype=np.int64)
    rng = np.random.default_rng((seed, len(sizes)))
    quotas = rng.multinomial(wanted, np.asarray(sizes) / total).tolist()
    order = rng.permutation(len(sizes)).tolist()
    drawn: dict[int, Int64Array] = {}
    missing = 0
    for number in order:
        missing += quotas[number]
        if missing > 0 and quotas[number]:
            drawn[number] = draw(number, missing)
            missing -= len(drawn[number])
    for number in order:  # what some could not give
        if missing <= 0:
            break
        before = len(drawn.get(number, ()))
        drawn[number] = draw(number, before + missing)
        missing -= len(drawn[number]) - before
    return np.concatenate([np.empty(0, np.int64), *(drawn[number] for number in sorted(drawn))])


def sample_documents(documents: Int64Array, max_chunks: int, seed: tuple[int, ...]) -> Int64Array:
    """The rows of all chunks of some random documents, ascending; `documents` (Q,) is the document of each row.

    Documents are drawn until they have `max_chunks` chunks: at least one, unless `max_chunks` is 0 or there is none.
    """
    _, inverse, counts = np.unique(documents, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    before = np.cumsum(counts[order]) - counts[order]
    return np.flatnonzero(np.isin(inverse, order[before < max_chunks]))
