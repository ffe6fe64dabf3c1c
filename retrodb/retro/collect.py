"""The arrays that the model reads, from a neighbour table of a database.

Only chunks that a query needs are gathered, and get new row numbers without gaps: the arrays of a sample are small, however
large the database is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.entries import SpaceEntry
from retrodb.retro.data import RetroData
from retrodb.retro.sampling import sample_by_shards, sample_documents
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View


def collect_data(table: NeighbourTable, *, max_chunks: int, seed: int) -> RetroData:
    """The chunks of a random sample of a query set's live documents, with their neighbours.

    Args:
        max_chunks: whole documents are drawn until they have this many chunks; at least one is drawn.
    """
    rows = sample_rows(table.view.query_set(table.query_set), max_chunks, seed)
    return data_with_neighbours(table.view, table.query_set, rows, table.read(rows)[0], space=table.entry.space)


def data_with_neighbours(view: View, query_set: str, rows: Int64Array, ids: Int64Array, *, space: str) -> RetroData:
    """Rows of a query set (Q,) with the chunks (Q, K) that are their neighbours, -1 where there is none."""
    queries = view.query_set(query_set)
    batch = queries.gather_tokens(rows)
    texts = queries.texts(rows)
    return data_of_chunks(view, batch.tokens, batch.lengths, texts, queries.document_ids(rows), ids, space=space)


def data_of_chunks(
    view: View,
    tokens: AnyArray,
    lengths: Int64Array,
    texts: Sequence[str],
    documents: Int64Array,
    ids: Int64Array,
    *,
    space: str,
) -> RetroData:
    """Chunks from any source with their neighbours.

    Args:
        tokens: (Q, m) of the chunks.
        lengths: (Q,) tokens in each.
        texts: (Q,) of the chunks.
        documents: (Q,) document of each.
        ids: (Q, K) chunks that are their neighbours, -1 where there is none.
        space: the space in which the neighbours were found.
    """
    chunks = view.chunks
    nearest = np.unique(ids[ids >= 0])
    following = chunks.continuation(nearest)
    needed = np.union1d(nearest, following[following >= 0])
    batch = chunks.gather_tokens(needed)
    return RetroData(
        tokens=batch.tokens,
        lengths=batch.lengths,
        continuations=_positions_in(needed, chunks.continuation(needed)),
        query_tokens=tokens,
        query_lengths=lengths,
        query_bytes=np.array([len(text.encode()) for text in texts], dtype=np.int64),
        query_documents=documents,
        neighbours=_positions_in(needed, ids),
        vocab_size=view.settings.vocab_size,
        tokenizer=view.settings.tokenizer_sha256,
        encoder=view.snapshot.existing(SpaceEntry, space).fingerprint,
    )


def sample_rows(queries: ChunkSet, max_chunks: int, seed: int) -> Int64Array:
    """Rows of whole live documents, in order: a random sample of the documents, drawn from one range of ids at a time."""
    ranges = queries.ranges

    def draw(number: int, wanted: int) -> Int64Array:
        first, count = ranges[number].span
        live = first + np.flatnonzero(queries.live_mask(first, count))
        rows = live[queries.lengths(live) > 0]
        return rows[sample_documents(queries.document_ids(rows), wanted, (seed, number))]

    return sample_by_shards([record.num_chunks for record in ranges], draw, max_chunks, seed)


def _positions_in(sorted_ids: Int64Array, ids: Int64Array) -> Int64Array:
    """The position of each id in the ascending `sorted_ids`; -1 for an id that is not there, and for -1."""
    if not len(sorted_ids):
        return np.full(ids.shape, -1, dtype=np.int64)
    positions = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return np.where(sorted_ids[positions] == ids, positions, -1)
