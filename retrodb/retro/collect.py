"""From a neighbour table of a database to the arrays that the model reads.

Only the chunks that some query's neighbours need are gathered, under new, dense rows: the arrays of a sample are small,
however large the database.
"""

from __future__ import annotations

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.retro.data import RetroData
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable


def collect(table: NeighbourTable, *, max_chunks: int, seed: int) -> RetroData:
    """The chunks of a random sample of a query set's live documents, with their neighbours.

    Args:
        max_chunks: whole documents are drawn until they have so many chunks; at least one is.
    """
    view = table.view
    queries = view.query_set(table.query_set)
    rows = _sample(queries, max_chunks, seed)
    neighbours, _ = table.read(rows)
    chunks = view.chunks
    nearest = np.unique(neighbours[neighbours >= 0])
    following = chunks.continuation(nearest)
    ids = np.union1d(nearest, following[following >= 0])
    batch = chunks.gather_tokens(ids)
    own = queries.gather_tokens(rows)
    return RetroData(
        tokens=batch.tokens,
        lengths=batch.lengths,
        continuations=_place(ids, chunks.continuation(ids)),
        query_tokens=own.tokens,
        query_lengths=own.lengths,
        query_bytes=np.array([len(text.encode()) for text in queries.texts(rows)], dtype=np.int64),
        query_documents=queries.document_ids(rows),
        neighbours=_place(ids, neighbours),
        vocab_size=view.settings.vocab_size,
        tokenizer=view.settings.tokenizer_sha256,
    )


def _sample(queries: ChunkSet, max_chunks: int, seed: int) -> Int64Array:
    """Rows of whole live documents, in order: a random sample of the documents."""
    parts = []
    for record in queries.ranges:
        live = record.first_chunk + np.flatnonzero(queries.live_mask(record.first_chunk, record.num_chunks))
        parts.append(live[queries.lengths(live) > 0])
    rows = np.concatenate([np.empty(0, np.int64), *parts])
    documents, which, counts = np.unique(queries.document_ids(rows), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(documents))
    chosen = order[np.concatenate(([True], np.cumsum(counts[order])[:-1] < max_chunks))[: len(order)]]
    return rows[np.isin(which, chosen)]


def _place(ids: Int64Array, wanted: Int64Array) -> Int64Array:
    """Where each wanted id stands in the ascending `ids`; -1 for those that do not, and for -1 itself."""
    if not len(ids):
        return np.full(wanted.shape, -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[place] == wanted, place, -1)
