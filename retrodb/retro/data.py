"""What a RETRO trainer reads: chunks with continuations, and queries with their neighbours.

Shapes: N database chunks and Q query chunks of m tokens; K neighbours per query; B sequences of l chunks. No database is needed:
the `arrays` export is NumPy files, which `load_arrays` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from retrodb.errors import InputError, MissingFileError
from retrodb.export.arrays_format import DIMENSIONS, read_arrays_meta
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.retro.sampling import sample_by_shards, sample_documents

SHARD_ROWS = 1 << 18
"""Query rows that are read at a time: a shard has so many, and the rest of its last document."""
SHUFFLED_SHARDS = 4
"""Shards whose windows are shuffled together: what an epoch has in memory."""
_DOCUMENT_ROWS = 1 << 12  # rows in which the end of a document is looked for


@dataclass(frozen=True)
class ChunkWindows:
    """Runs of consecutive query chunks of one document."""

    first: Int64Array  # (W,) query row of the first chunk
    count: Int64Array  # (W,) chunks
    context: Int64Array  # (W,) leading chunks that an earlier window has too: read, but not scored again


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences as the model reads them, with the pad token where there is none."""

    rows: Int64Array  # (B, l) query row of each chunk, -1 past the end of a sequence
    is_scored: BoolArray  # (B, l) whether the chunk's loss counts here
    tokens: Int64Array  # (B, l m)
    neighbours: Int64Array | None  # (B, l, K, 2 m), None where no chunk of the batch has any


@dataclass(frozen=True)
class RetroData:
    """Database side and query side of one neighbour table; the arrays may be memory-mapped."""

    tokens: AnyArray  # (N, m) unsigned token ids of the database's chunks; undefined past the length
    lengths: AnyArray  # (N,) tokens in each
    continuations: Int64Array  # (N,) row of the next chunk of the same document, -1 at its end
    query_tokens: AnyArray  # (Q, m) the chunks that have neighbours, document after document, in order
    query_lengths: AnyArray  # (Q,)
    query_bytes: AnyArray  # (Q,) UTF-8 bytes of the text of each
    query_documents: Int64Array  # (Q,) document of each: equal exactly for adjacent rows of one document
    neighbours: Int64Array  # (Q, K) rows of the database, nearest first, -1 where there is none
    vocab_size: int  # of the language model
    tokenizer: str = ""  # digest of the tokenizer, so that a model never reads the tokens of another one
    encoder: str = ""  # fingerprint of the encoder whose vectors gave the neighbours; "" when it is not known

    @property
    def chunk_tokens(self) -> int:
        return int(self.query_tokens.shape[1])

    @property
    def pad_token(self) -> int:
        """The first id outside the vocabulary."""
        return self.vocab_size

    def queries(self, rows: Int64Array) -> Int64Array:
        """Query chunks (..., m), the pad token wherever the row is -1 or the chunk has ended."""
        return _gather(self.query_tokens, self.query_lengths, rows, self.pad_token)

    def values(self, rows: Int64Array) -> Int64Array:
        """[N, F] of database rows (..., 2 m): the chunk and its continuation, the pad token wherever one is missing.

        Only this method reads the database's chunks, so a -1 can never become text.
        """
        if not len(self.tokens):
            return np.full((*rows.shape, 2 * self.chunk_tokens), self.pad_token, dtype=np.int64)
        following = np.where(rows >= 0, self.continuations[np.maximum(rows, 0)], -1)
        return np.concatenate(
            [_gather(self.tokens, self.lengths, part, self.pad_token) for part in (rows, following)], axis=-1
        )

    def neighbour_values(self, rows: Int64Array, k: int) -> Int64Array:
        """[N, F] of the first k neighbours of query rows: (..., k, 2 m)."""
        nearest = self.neighbours[np.maximum(rows, 0)][..., :k]
        return self.values(np.where(rows[..., None] >= 0, nearest, -1))

    def shuffled(self, seed: int) -> RetroData:
        """Every query with the neighbours of another one: equally good text that is about something else."""
        order = np.random.default_rng(seed).permutation(len(self.neighbours))
        return replace(self, neighbours=self.neighbours[order])

    def random(self, seed: int) -> RetroData:
        """Every neighbour replaced by any chunk of the database; missing ones stay missing."""
        drawn = np.random.default_rng(seed).integers(max(1, len(self.tokens)), size=self.neighbours.shape)
        return replace(self, neighbours=np.where(self.neighbours >= 0, drawn, -1))

    def without(self) -> RetroData:
        """The same queries without neighbours."""
        return replace(self, neighbours=np.broadcast_to(np.int64(-1), self.neighbours.shape))

    def sample(self, max_chunks: int, seed: int) -> RetroData:
        """The queries of random documents, in their order: documents are drawn until they have `max_chunks` chunks."""
        shards = self.shards()

        def draw(number: int, wanted: int) -> Int64Array:
            rows = shards[number]
            documents = np.asarray(self.query_documents[rows.start : rows.stop])
            return rows.start + sample_documents(documents, wanted, (seed, number))

        rows = sample_by_shards([len(shard) for shard in shards], draw, max_chunks, seed)
        fields = [name for name in DIMENSIONS if name.startswith("query_")] + ["neighbours"]
        return replace(self, **{name: getattr(self, name)[rows] for name in fields})

    def token_counts(self, vocab_size: int, max_chunks: int = 100_000) -> Int64Array:
        """The count of each token (V,) in the queries, or in `max_chunks` of them, evenly spread."""
        rows = np.unique(
            np.linspace(0, len(self.query_tokens) - 1, min(len(self.query_tokens), max_chunks)).astype(np.int64)
        )
        return np.bincount(self.queries(rows).ravel(), minlength=vocab_size + 1)[:vocab_size]

    def shards(self) -> list[range]:
        """All query rows in ranges of about `SHARD_ROWS`, each of whole documents."""
        bounds, end = [0], len(self.query_documents)
        while bounds[-1] < end:
            bounds.append(self._document_end(min(end, bounds[-1] + SHARD_ROWS)))
        return [range(*pair) for pair in pairwise(bounds)]

    def _document_end(self, row: int) -> int:
        """The first row from `row` on that begins a document, or the number of rows."""
        documents = self.query_documents
        while row < len(documents):
            is_next = documents[row : row + _DOCUMENT_ROWS] != documents[row - 1]
            if is_next.any():
                return row + int(is_next.argmax())
            row += len(is_next)
        return row

    def windows(self, num_chunks: int, stride: int, rows: range) -> ChunkWindows:
        """Cuts the documents of a shard into windows of at most `num_chunks`, each `stride` chunks after the one before."""
        documents = np.asarray(self.query_documents[rows.start : rows.stop])
        starts = np.flatnonzero(np.concatenate(([True], np.diff(documents) != 0))[: len(documents)])
        sizes = np.diff(starts, append=len(documents))
        per_document = 1 + np.maximum(0, -(-(sizes - num_chunks) // stride))
        document = np.repeat(np.arange(len(starts)), per_document)
        number = np.arange(len(document)) - np.repeat(np.cumsum(per_document) - per_document, per_document)
        count = np.minimum(num_chunks, sizes[document] - number * stride)
        first = rows.start + starts[document] + number * stride
        return ChunkWindows(first, count, np.where(number > 0, num_chunks - stride, 0))

    def batches(
        self, num_chunks: int, stride: int, *, batch_chunks: int, k: int, seed: tuple[int, ...]
    ) -> Iterator[SequenceBatch]:
        """All windows of at most `num_chunks` chunks once, in the order that the seed gives."""
        order = self.order(num_chunks, stride, batch_chunks, seed)
        return (self.batch(windows, chosen, k) for windows, chosen in order)

    def order(
        self, num_chunks: int, stride: int, batch_chunks: int, seed: tuple[int, ...]
    ) -> Iterator[tuple[ChunkWindows, Int64Array]]:
        """The batches of an epoch, about `batch_chunks` chunks each: windows, and which of them the batch has.

        The shards are shuffled, then the windows of `SHUFFLED_SHARDS` shards at a time: memory does not grow with the rows.
        Windows of similar length form a batch, so that there is little padding.
        """
        rng = np.random.default_rng(seed)
        shards = self.shards()
        shuffled = [shards[number] for number in rng.permutation(len(shards))]
        for start in range(0, len(shuffled), SHUFFLED_SHARDS):
            cuts = [self.windows(num_chunks, stride, rows) for rows in shuffled[start : start + SHUFFLED_SHARDS]]
            windows = ChunkWindows(
                np.concatenate([cut.first for cut in cuts]),
                np.concatenate([cut.count for cut in cuts]),
                np.concatenate([cut.context for cut in cuts]),
            )
            yield from ((windows, chosen) for chosen in _shuffled_batches(windows, batch_chunks, rng))

    def batch(self, windows: ChunkWindows, chosen: Int64Array, k: int) -> SequenceBatch:
        """Some of the windows as the model reads them, each chunk with its first k neighbours."""
        offset = np.arange(windows.count[chosen].max())  # (l,)
        is_chunk = offset < windows.count[chosen, None]
        rows = np.where(is_chunk, windows.first[chosen, None] + offset, -1)
        neighbours = self.neighbour_values(rows, k)
        return SequenceBatch(
            rows=rows,
            is_scored=is_chunk & (offset >= windows.context[chosen, None]),
            tokens=self.queries(rows).reshape(len(rows), -1),
            neighbours=neighbours if (neighbours != self.pad_token).any() else None,
        )


def _shuffled_batches(windows: ChunkWindows, batch_chunks: int, rng: np.random.Generator) -> list[Int64Array]:
    order = rng.permutation(len(windows.first))
    order = order[np.argsort(-windows.count[order], kind="stable")]
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_chunks // int(windows.count[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return [batches[number] for number in rng.permutation(len(batches))]


def _gather(tokens: AnyArray, lengths: AnyArray, rows: Int64Array, pad_token: int) -> Int64Array:
    safe = np.maximum(rows, 0)  # reads row 0 for -1, whose tokens are replaced below
    is_token = (np.arange(tokens.shape[1]) < lengths[safe][..., None]) & (rows >= 0)[..., None]
    return np.where(is_token, tokens[safe], pad_token).astype(np.int64)


def load_arrays(folder: Path) -> RetroData:
    """The `arrays` export in `folder`, memory-mapped.

    Raises:
        MissingFileError: for a file that is not there.
        FormatVersionError: for an export of a newer retrodb.
        InputError: for a folder that is no such export, or whose files do not fit each other.
    """
    meta = read_arrays_meta(folder)
    arrays = {name: _array(folder / f"{name}.npy", dimensions) for name, dimensions in DIMENSIONS.items()}
    data = RetroData(**arrays, vocab_size=meta.vocab_size, tokenizer=meta.tokenizer, encoder=meta.encoder)
    shapes = {
        **dict.fromkeys(("lengths", "continuations"), data.tokens.shape[:1]),
        **dict.fromkeys(("query_lengths", "query_bytes", "query_documents"), data.query_tokens.shape[:1]),
        "tokens": (len(data.tokens), meta.chunk_tokens),
        "query_tokens": (len(data.query_tokens), meta.chunk_tokens),
        "neighbours": (len(data.query_tokens), meta.k),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            what = f"has shape {arrays[name].shape}, expected {shape}"
            raise InputError(what, where=str(folder / f"{name}.npy"), remedy="Export again.")
    return data


def _array(path: Path, dimensions: int) -> AnyArray:
    if not path.exists():
        raise MissingFileError("no such file", where=str(path), remedy="Export again.")
    mapped: Literal["r"] | None = "r" if path.stat().st_size > 4096 else None  # an empty array cannot be mapped
    try:
        array = np.load(path, mmap_mode=mapped, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"no NumPy array ({error})", where=str(path), remedy="Export again.") from error
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        what = f"{array.dtype} of {array.ndim} dimensions, expected integers of {dimensions}"
        raise InputError(what, where=str(path), remedy="Export again.")
    return array  # type: ignore[no-any-return]
