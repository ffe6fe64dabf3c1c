"""Synthetic neighbour tables: documents whose text a noisy copy in the database gives away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retrodb.retro.data import RetroData


def near_copies(
    documents: int, *, chunks: int = 4, m: int = 16, vocab: int = 128, k: int = 1, noise: float = 0.1, seed: int = 0
) -> RetroData:
    """Documents of random tokens; the database holds each of them with a share of other tokens, as its nearest neighbour."""
    rng = np.random.default_rng(seed)
    N = documents * chunks
    original = rng.integers(vocab, size=(N, m)).astype(np.uint16)
    is_noise = rng.random((N, m)) < noise
    continuations = np.arange(1, N + 1)
    continuations[chunks - 1 :: chunks] = -1
    nearest = np.concatenate([np.arange(N)[:, None], rng.integers(N, size=(N, k - 1))], axis=1)
    return RetroData(
        tokens=np.where(is_noise, rng.integers(vocab, size=(N, m)), original).astype(np.uint16),
        lengths=np.full(N, m),
        continuations=continuations,
        query_tokens=original,
        query_lengths=np.full(N, m),
        query_bytes=np.full(N, 2 * m),
        query_documents=np.arange(N) // chunks,
        neighbours=nearest,
        vocab_size=vocab,
    )


def rows(data: RetroData, chosen: slice) -> RetroData:
    """The same database with some of its queries."""
    fields = ("query_tokens", "query_lengths", "query_bytes", "query_documents", "neighbours")
    return replace(data, **{name: getattr(data, name)[chosen] for name in fields})


def random_table(rng: np.random.Generator, sizes: list[int], *, m: int = 4, k: int = 2, vocab: int = 20) -> RetroData:
    """Documents of the given numbers of tokens, in the database and as queries, with random neighbours, some missing."""
    lengths = np.array([min(m, size - at) for size in sizes for at in range(0, size, m)], dtype=np.int64)
    documents = np.array([number for number, size in enumerate(sizes) for _ in range(0, size, m)], dtype=np.int64)
    N = len(lengths)
    tokens = rng.integers(vocab, size=(N, m)).astype(np.uint16)
    ends = np.append(documents[1:] != documents[:-1], True)
    return RetroData(
        tokens=tokens,
        lengths=lengths,
        continuations=np.where(ends, -1, np.arange(1, N + 1)),
        query_tokens=tokens,
        query_lengths=lengths,
        query_bytes=lengths * 3,
        query_documents=documents,
        neighbours=rng.integers(-1, N, size=(N, k)),
        vocab_size=vocab,
    )
