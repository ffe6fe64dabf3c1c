"""One row of a neighbour table, for a person to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.edits import BAN, PIN
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

MIN_RUN = 6  # tokens in common that are worth showing


@dataclass(frozen=True)
class ShownChunk:
    """A chunk with what follows it."""

    chunk_id: int
    source: str
    doc_id: str
    position: int  # in its document, from 0
    text: str
    continuation: str  # "" where there is none


@dataclass(frozen=True)
class ShownNeighbour:
    """One neighbour of the row."""

    chunk: ShownChunk
    distance: float  # smaller is nearer
    is_pinned: bool
    shared_runs: tuple[
        str, ...
    ]  # texts of the token runs that [chunk, continuation] has in common with those of the row


@dataclass(frozen=True)
class ShownRow:
    """A row of a neighbour table with its neighbours."""

    table: str
    k: int
    short: int  # rows of the table with fewer than k neighbours
    row: ShownChunk
    neighbours: tuple[ShownNeighbour, ...]
    bans: tuple[int, ...]  # chunks that were banned from this row


def show_row(view: View, row: int, table: str | None = None) -> ShownRow:
    """A row of a table: its chunk, its neighbours, what follows each, and the token runs that they share.

    Raises:
        MissingStep: when there is no such table.
        UsageError: when it has no such live row.
    """
    source, rows = NeighbourTable(view, table), np.array([row], dtype=np.int64)
    queries = view.query_set(source.query_set)
    if not np.isin(row, source.rows()):
        raise UsageError(
            f"table '{source.name}' has no live row {row}", remedy="Rows are chunk ids, or rows of the query set."
        )
    ids, distances = source.read(rows)
    found = ids[0][ids[0] >= 0]
    edits = source.edits.of_row(row)
    pins = {edit.chunk for edit in edits if edit.action == PIN}
    tokenizer = load_tokenizer(view.storage.url, view.settings.tokenizer_sha256)
    [own] = _tokens(queries, rows)
    shown = [
        ShownNeighbour(chunk, distance, chunk.chunk_id in pins, _texts(shared_runs(own, tokens), tokenizer))
        for chunk, distance, tokens in zip(
            _chunks(view.chunks, found), distances[0].tolist(), _tokens(view.chunks, found), strict=False
        )
    ]
    bans = tuple(edit.chunk for edit in edits if edit.action == BAN)
    [chunk] = _chunks(queries, rows)
    return ShownRow(source.name, source.k, source.num_short(), chunk, tuple(shown), bans)


def shared_runs(first: list[int], second: list[int]) -> list[list[int]]:
    """The longest runs of `second`, of `MIN_RUN` tokens or more, that stand in `first` too; none lies within another."""
    starts: dict[tuple[int, ...], list[int]] = {}
    for start in range(len(first) - MIN_RUN + 1):
        starts.setdefault(tuple(first[start : start + MIN_RUN]), []).append(start)
    runs, end = [], 0
    for start in range(len(second) - MIN_RUN + 1):
        places = starts.get(tuple(second[start : start + MIN_RUN]), [])
        length = max((_common(first[place:], second[start:]) for place in places), default=0)
        if length and start + length > end:
            runs.append(second[start : start + length])
            end = start + length
    return runs


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens two lists have in common from their beginning on."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _texts(runs: list[list[int]], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Texts of runs, without the pieces of characters that they may begin and end with."""
    return tuple(text for run in runs if (text := tokenizer.decode(run).strip("\ufffd").strip()))


def _tokens(chunks: ChunkSet, ids: Int64Array) -> list[list[int]]:
    """The tokens of [chunk, continuation] of each chunk."""
    both = [chunks.gather_tokens(each) for each in (ids, chunks.continuation(ids))]
    return [
        [token for each in both for token in each.tokens[place, : each.lengths[place]].tolist()]
        for place in range(len(ids))
    ]


def _chunks(chunks: ChunkSet, ids: Int64Array) -> Iterator[ShownChunk]:
    following = chunks.texts(chunks.continuation(ids))
    for chunk, text, then, document in zip(
        ids.tolist(), chunks.texts(ids), following, chunks.documents(ids), strict=True
    ):
        assert document is not None, "a live chunk has a document"
        position = chunk - document["first_chunk"]
        yield ShownChunk(chunk, document["source"], document["doc_id"], position, text, then)
