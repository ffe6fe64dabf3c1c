"""What a RETRO trainer reads: chunks with continuations, and queries with their neighbours.

Shapes: N database chunks and Q query chunks of m tokens; K neighbours per query; B sequences of l chunks. Nothing here needs
a database: the `arrays` export is plain NumPy files, read by `load_arrays`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrodb.errors import FormatVersionError, InputError, MissingFileError
from retrodb.format.arrays import Int64Array

FORMAT, VERSION = "retrodb-arrays", 1
# field -> file of the `arrays` export, and its number of dimensions
FILES = {
    "tokens": ("tokens.npy", 2),
    "lengths": ("lengths.npy", 1),
    "continuations": ("continuations.npy", 1),
    "query_tokens": ("query_tokens.npy", 2),
    "query_lengths": ("query_lengths.npy", 1),
    "query_bytes": ("query_bytes.npy", 1),
    "query_documents": ("query_documents.npy", 1),
    "neighbours": ("neighbours.npy", 2),
}


@dataclass(frozen=True)
class Windows:
    """Runs of consecutive query chunks of one document."""

    first: Int64Array  # (W,) query row of the first chunk
    count: Int64Array  # (W,) chunks
    context: Int64Array  # (W,) leading chunks that an earlier window holds too: read, but not scored again


@dataclass(frozen=True)
class Batch:
    """Sequences as the model reads them; the pad token is where nothing is."""

    rows: Int64Array  # (B, l) query row of each chunk, -1 past the end of a sequence
    is_scored: NDArray[np.bool_]  # (B, l) whether the chunk's loss counts here
    tokens: Int64Array  # (B, l m)
    neighbours: Int64Array | None  # (B, l, K, 2 m), None where no chunk of the batch has any


@dataclass(frozen=True)
class RetroData:
    """Database side and query side of one neighbour table; the arrays may be memory-mapped."""

    tokens: NDArray[Any]  # (N, m) unsigned token ids of the database's chunks; past the length anything
    lengths: NDArray[Any]  # (N,) tokens in each
    continuations: Int64Array  # (N,) row of the next chunk of the same document, -1 at its end
    query_tokens: NDArray[Any]  # (Q, m) the chunks that want neighbours, document after document, in order
    query_lengths: NDArray[Any]  # (Q,)
    query_bytes: NDArray[Any]  # (Q,) UTF-8 bytes that each stands for
    query_documents: Int64Array  # (Q,) document of each: equal for, and only for, neighbouring rows of one document
    neighbours: Int64Array  # (Q, K) rows of the database, nearest first, -1 where there is none
    vocab_size: int  # of the language model
    tokenizer: str = ""  # digest of the tokenizer, so that a model is never fed another one's tokens
    encoder: str = ""  # fingerprint of the encoder whose vectors made the neighbours; "" when it is not known

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

        This is the one place that reads the database's chunks, so a -1 can never become text.
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
        """Every query with the neighbours of another, so that they are as good as before but about something else."""
        order = np.random.default_rng(seed).permutation(len(self.neighbours))
        return replace(self, neighbours=self.neighbours[order])

    def random(self, seed: int) -> RetroData:
        """Every neighbour replaced by any chunk of the database; missing ones stay missing."""
        drawn = np.random.default_rng(seed).integers(max(1, len(self.tokens)), size=self.neighbours.shape)
        return replace(self, neighbours=np.where(self.neighbours >= 0, drawn, -1))

    def without(self) -> RetroData:
        """The same queries without neighbours."""
        return replace(self, neighbours=np.full_like(self.neighbours, -1))

    def sample(self, max_chunks: int, seed: int) -> RetroData:
        """The queries of some documents, in their order: documents drawn at random until they have so many chunks."""
        rows = sample_documents(self.query_documents, max_chunks, seed)
        fields = [name for name in FILES if name.startswith("query_")] + ["neighbours"]
        return replace(self, **{name: getattr(self, name)[rows] for name in fields})

    def token_counts(self, vocab_size: int, max_chunks: int = 100_000) -> Int64Array:
        """How often each token occurs in the queries (V,), or in so many of them, evenly spread."""
        rows = np.unique(
            np.linspace(0, len(self.query_tokens) - 1, min(len(self.query_tokens), max_chunks)).astype(np.int64)
        )
        return np.bincount(self.queries(rows).ravel(), minlength=vocab_size + 1)[:vocab_size]

    def windows(self, num_chunks: int, stride: int) -> Windows:
        """Cuts every document into windows of at most `num_chunks`, each `stride` chunks after the one before."""
        changes = np.flatnonzero(np.diff(self.query_documents)) + 1
        starts = np.concatenate(([0], changes)) if len(self.query_documents) else changes
        sizes = np.diff(starts, append=len(self.query_documents))
        per_document = 1 + np.maximum(0, -(-(sizes - num_chunks) // stride))
        document = np.repeat(np.arange(len(starts)), per_document)
        number = np.arange(len(document)) - np.repeat(np.cumsum(per_document) - per_document, per_document)
        count = np.minimum(num_chunks, sizes[document] - number * stride)
        return Windows(starts[document] + number * stride, count, np.where(number > 0, num_chunks - stride, 0))

    def batches(self, windows: Windows, batch_chunks: int, k: int, seed: tuple[int, ...]) -> Iterator[Batch]:
        """All windows once, in the order that the seed gives."""
        return (self.batch(windows, chosen, k) for chosen in self.order(windows, batch_chunks, seed))

    def order(self, windows: Windows, batch_chunks: int, seed: tuple[int, ...]) -> list[Int64Array]:
        """Which windows make each batch of an epoch, about `batch_chunks` chunks at a time.

        Windows of like length go together, so that hardly anything is padding.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(windows.first))
        order = order[np.argsort(-windows.count[order], kind="stable")]
        cuts, at = [], 0
        while at < len(order):
            size = max(1, batch_chunks // int(windows.count[order[at]]))
            cuts.append(order[at : at + size])
            at += size
        return [cuts[number] for number in rng.permutation(len(cuts))]

    def batch(self, windows: Windows, chosen: Int64Array, k: int) -> Batch:
        """Some of the windows as the model reads them, each chunk with its first k neighbours."""
        offset = np.arange(windows.count[chosen].max())  # (l,)
        is_chunk = offset < windows.count[chosen, None]
        rows = np.where(is_chunk, windows.first[chosen, None] + offset, -1)
        neighbours = self.neighbour_values(rows, k)
        return Batch(
            rows=rows,
            is_scored=is_chunk & (offset >= windows.context[chosen, None]),
            tokens=self.queries(rows).reshape(len(rows), -1),
            neighbours=neighbours if (neighbours != self.pad_token).any() else None,
        )


def sample_documents(documents: Int64Array, max_chunks: int, seed: int) -> Int64Array:
    """Places of all chunks of some of the documents that the chunks are of (Q,), ascending.

    Documents are drawn at random until they have `max_chunks` chunks: one at least, unless there is none or none is wanted.
    """
    _, which, counts = np.unique(documents, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    before = np.cumsum(counts[order]) - counts[order]
    return np.flatnonzero(np.isin(which, order[before < max_chunks]))


def _gather(tokens: NDArray[Any], lengths: NDArray[Any], rows: Int64Array, pad_token: int) -> Int64Array:
    safe = np.maximum(rows, 0)  # read something for -1, then cover it
    is_token = (np.arange(tokens.shape[1]) < lengths[safe][..., None]) & (rows >= 0)[..., None]
    return np.where(is_token, tokens[safe], pad_token).astype(np.int64)


def load_arrays(folder: Path) -> RetroData:
    """The `arrays` export in `folder`, memory-mapped.

    Raises:
        MissingFileError: for a file that is not there.
        FormatVersionError: for an export of a newer retrodb.
        InputError: for anything that is no such export, or whose files do not fit each other.
    """
    meta = _meta(folder / "meta.json")
    arrays = {field: _array(folder / name, dimensions) for field, (name, dimensions) in FILES.items()}
    data = RetroData(
        **arrays, vocab_size=meta["vocab_size"], tokenizer=meta["tokenizer"], encoder=meta.get("encoder", "")
    )
    shapes = {
        **dict.fromkeys(("lengths", "continuations"), data.tokens.shape[:1]),
        **dict.fromkeys(("query_lengths", "query_bytes", "query_documents"), data.query_tokens.shape[:1]),
        "tokens": (len(data.tokens), meta["chunk_tokens"]),
        "query_tokens": (len(data.query_tokens), meta["chunk_tokens"]),
        "neighbours": (len(data.query_tokens), meta["k"]),
    }
    for field, shape in shapes.items():
        if arrays[field].shape != shape:
            what = f"has shape {arrays[field].shape}, expected {shape}"
            raise InputError(what, where=str(folder / FILES[field][0]), remedy="Export again.")
    return data


def _meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise MissingFileError("no such file", where=str(path), remedy="Run 'retrodb export DB --to arrays'.")
    try:
        meta = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"no JSON ({error})", where=str(path), remedy="Export again.") from error
    expected = {"format", "version", "chunk_tokens", "k", "vocab_size", "pad_token", "tokenizer"}
    if not isinstance(meta, dict) or not expected <= set(meta) or meta["format"] != FORMAT:
        remedy = "Run 'retrodb export DB --to arrays'."
        raise InputError("not the card of an arrays export", where=str(path), remedy=remedy)
    if meta["version"] > VERSION:
        remedy = "Use a newer retrodb, or export again."
        raise FormatVersionError(
            f"version {meta['version']}, this retrodb reads {VERSION}", where=str(path), remedy=remedy
        )
    if meta["pad_token"] != meta["vocab_size"]:
        what = f"pad_token is {meta['pad_token']}, expected vocab_size, {meta['vocab_size']}"
        raise InputError(what, where=str(path), remedy="Export again.")
    return meta


def _array(path: Path, dimensions: int) -> NDArray[Any]:
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
