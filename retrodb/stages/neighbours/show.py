"""One row of a neighbour table with its texts, for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.scores import Measure
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.edits import BAN, PIN
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

MIN_RUN = 6  # shortest run of shared tokens that is shown


@dataclass(frozen=True)
class ShownChunk:
    """A chunk and its continuation."""

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
    score: float  # how near it is, in the measure below
    measure: Measure  # "similarity" (greater is nearer) or "squared_distance" (smaller is nearer), by the metric of the space
    is_pinned: bool
    shared_runs: tuple[str, ...]  # texts of the token runs that [chunk, continuation] shares with those of the row


@dataclass(frozen=True)
class ShownRow:
    """A row of a neighbour table with its neighbours."""

    table: str
    k: int
    num_short: int  # rows of the table that had fewer than k neighbours when it was computed or last repaired
    row: ShownChunk
    neighbours: tuple[ShownNeighbour, ...]
    bans: tuple[int, ...]  # chunks that were banned from this row


def show_row(view: View, row: int, table: str | None = None) -> ShownRow:
    """A row of a table: its chunk, its neighbours, their continuations, and the token runs that they share.

    Args:
        row: a chunk id, or a row of the query set.
        table: None takes the table of the database's own chunks, or the first one.

    Raises:
        MissingStep: when there is no such table.
        UsageError: when it has no such live row.
    """
    neighbour_table, rows = NeighbourTable(view, table), np.array([row], dtype=np.int64)
    refuse_dead_row(neighbour_table, row)
    queries = view.query_set(neighbour_table.query_set)
    ids, scores = neighbour_table.read_scores(rows)
    neighbour_ids = ids[0][ids[0] >= 0]
    edits = neighbour_table.edits.of_row(row)
    pins = {edit.chunk for edit in edits if edit.action == PIN}
    tokenizer = load_tokenizer(view.storage.url, view.settings.tokenizer_sha256)
    [row_tokens] = _tokens(queries, rows)
    neighbours = [
        ShownNeighbour(
            chunk,
            score,
            neighbour_table.measure,
            chunk.chunk_id in pins,
            _texts(shared_runs(row_tokens, tokens), tokenizer),
        )
        for chunk, score, tokens in zip(
            _chunks(view.chunks, neighbour_ids),
            scores[0].tolist(),
            _tokens(view.chunks, neighbour_ids),
            strict=False,
        )
    ]
    bans = tuple(edit.chunk for edit in edits if edit.action == BAN)
    [chunk] = _chunks(queries, rows)
    num_short = neighbour_table.entry.num_short
    return ShownRow(neighbour_table.name, neighbour_table.k, num_short, chunk, tuple(neighbours), bans)


def refuse_dead_row(table: NeighbourTable, row: int) -> None:
    """Raises UsageError when a table does not have a row, or the row is deleted."""
    if not table.has_row(row):
        raise UsageError(
            f"table '{table.name}' has no live row {row}", remedy="Rows are chunk ids, or rows of the query set."
        )


def shared_runs(first: list[int], second: list[int]) -> list[list[int]]:
    """The longest runs of at least `MIN_RUN` tokens of `second` that `first` contains too; none is part of another."""
    starts: dict[tuple[int, ...], list[int]] = {}
    for start in range(len(first) - MIN_RUN + 1):
        starts.setdefault(tuple(first[start : start + MIN_RUN]), []).append(start)
    runs, end = [], 0
    for start in range(len(second) - MIN_RUN + 1):
        positions = starts.get(tuple(second[start : start + MIN_RUN]), [])
        length = max((_common(first[position:], second[start:]) for position in positions), default=0)
        if length and start + length > end:
            runs.append(second[start : start + length])
            end = start + length
    return runs


def _common(first: list[int], second: list[int]) -> int:
    """Length of the longest common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _texts(runs: list[list[int]], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Texts of runs, without incomplete characters at their ends."""
    return tuple(text for run in runs if (text := tokenizer.decode(run).strip("\ufffd").strip()))


def _tokens(chunks: ChunkSet, ids: Int64Array) -> list[list[int]]:
    """The tokens of [chunk, continuation] of each chunk."""
    both = [chunks.gather_tokens(ids), chunks.gather_tokens(chunks.continuation(ids))]
    return [
        [token for batch in both for token in batch.tokens[number, : batch.lengths[number]].tolist()]
        for number in range(len(ids))
    ]


def _chunks(chunks: ChunkSet, ids: Int64Array) -> Iterator[ShownChunk]:
    continuations = chunks.texts(chunks.continuation(ids))
    for chunk, text, continuation, document in zip(
        ids.tolist(), chunks.texts(ids), continuations, chunks.documents(ids), strict=True
    ):
        assert document is not None, "a live chunk has a document"
        position = chunk - document["first_chunk"]
        yield ShownChunk(chunk, document["source"], document["doc_id"], position, text, continuation)
