"""Export for lucidrains' RETRO-pytorch (`retro_pytorch.RETRODataset`): headerless int32 arrays and `processed-stats.json`.

    train.chunks.dat (N + 64, m + 1)      a chunk's tokens and the next one's first
    train.chunks.knn.dat (N + 64, K)      rows of neighbours, -1 for none
    train.seq.dat (S,)                    the row that each sequence begins with
    train.doc_ids.dat (N,)                which document each row is of
    processed-stats.json                  {chunks, docs, seqs} and what to pass to RETRODataset

The reader fills up with 0, takes the row after a neighbour as its continuation unless the neighbour's row holds the
end-of-document token, and reads a sequence until that token. So the token stands behind the last one of every run of chunks,
and a row with nothing else behind every run. A tokenizer in which 0 is text has all its ids raised by one: `token_offset`.
Behind the last row stand 64 empty ones without neighbours: the reader extends files that are shorter with zeros, and 0 is a row.

The reader knows one array of chunks: the rows of a foreign query set follow those of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from retrodb.corpus.special_tokens import SpecialIds, special_ids
from retrodb.errors import UsageError
from retrodb.export.layout import ExportPositions, Span
from retrodb.export.padding import padded_tokens
from retrodb.export.pieces import Piece, json_file
from retrodb.export.source import ExportSource
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet

SEQUENCE_CHUNKS = 32  # 2,048 tokens of the paper
_TAIL_ROWS = 64  # sequences of up to 4,096 tokens may begin with the last row
_MAX_ROWS = (1 << 31) - 1


@dataclass(frozen=True)
class _Part:
    """The rows of one chunk set."""

    chunks: ChunkSet
    layout: ExportPositions
    first_row: int
    has_neighbours: bool

    @property
    def num_rows(self) -> int:
        return len(self.layout) + self.layout.num_runs

    def rows(self, places: Int64Array) -> Int64Array:
        """The row of each place; -1 for -1."""
        return np.where(places >= 0, self.first_row + places + self.layout.runs_until(places) - 1, -1)

    def blocks(self, of_chunks: Callable[[Int64Array], AnyArray], of_end: AnyArray) -> Iterator[AnyArray]:
        """Rows of chunks, with one more behind every run."""
        for span in self.layout.spans:
            for ids, ends in span.blocks_with_ends():
                yield np.insert(of_chunks(ids), ends, of_end, axis=0)


def pieces_of_lucidrains(source: ExportSource) -> list[Piece]:
    """The files of the export.

    Raises:
        UsageError: when there are more rows than 32 bits tell apart.
    """
    parts = _parts(source)
    num_rows = sum(part.num_rows for part in parts)
    if num_rows > _MAX_ROWS:
        raise UsageError(f"{num_rows:,} rows are more than 32-bit row numbers of this format can name")
    special, offset = _special(source)
    m, k = source.chunk_tokens, source.k
    sequences = np.concatenate(
        [_sequences(parts[-1], span) for span in parts[-1].layout.spans] or [np.empty(0, np.int64)]
    )
    stats = {
        "chunks": num_rows,
        "docs": sum(part.layout.num_runs for part in parts),
        "seqs": len(sequences),
        "eos_id": special.end + offset,
        "token_offset": offset,
        "seq_len": SEQUENCE_CHUNKS * m,
        "num_tokens": max(special.end + 1, source.settings.vocab_size) + offset,
    }
    places = identity([part.layout.digest for part in parts])
    tokens_state = partial(_joined, source, places)
    return [
        _file("train.chunks.dat", (num_rows + _TAIL_ROWS) * (m + 1), tokens_state, partial(_tokens, source, parts)),
        _file(
            "train.chunks.knn.dat",
            (num_rows + _TAIL_ROWS) * k,
            source.state_of_neighbours,
            partial(_knn, source, parts),
        ),
        _file("train.seq.dat", len(sequences), lambda: places, lambda: iter([sequences])),
        _file("train.doc_ids.dat", num_rows, lambda: places, partial(_documents, parts)),
        json_file("processed-stats.json", stats),
    ]


def _parts(source: ExportSource) -> list[_Part]:
    database = _Part(source.database, source.chunks, 0, source.is_own)
    return [database] if source.is_own else [database, _Part(source.queries, source.rows, database.num_rows, True)]


def _special(source: ExportSource) -> tuple[SpecialIds, int]:
    """The end-of-document token, and what is added to all ids so that 0 is no text."""
    special = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size)
    return special, 0 if special.pad == 0 and special.end != 0 else 1


def _joined(source: ExportSource, places: str) -> str:
    return identity(places, source.state_of_chunks(), source.state_of_rows())


def _file(path: str, num_values: int, state: Callable[[], str], blocks: Callable[[], Iterator[AnyArray]]) -> Piece:
    def write(file: Path) -> None:
        with file.open("wb") as sink:
            for block in blocks():
                sink.write(np.ascontiguousarray(block, dtype=np.int32).data)

    return Piece(path, 4 * num_values, state, write)


def _tokens(source: ExportSource, parts: list[_Part]) -> Iterator[AnyArray]:
    special, offset = _special(source)
    end, m = special.end + offset, source.chunk_tokens
    end_row = np.where(np.arange(m + 1) == 0, end, 0)

    def rows(chunks: ChunkSet, ids: Int64Array) -> AnyArray:
        """(Q, m + 1): the tokens, and the next chunk's first behind them; `end` where there is no next."""
        following = chunks.continuation(ids)
        batch = chunks.gather_tokens(ids)
        tokens = np.zeros((len(ids), m + 1), dtype=np.int32)
        inside = np.arange(m) < batch.lengths[:, None]
        tokens[:, :m] = np.where(inside, batch.tokens.astype(np.int32) + offset, 0)
        tokens[:, m] = padded_tokens(chunks, following, special.end, np.dtype(np.int32))[:, 0] + offset
        is_last = np.flatnonzero((following < 0) | ~chunks.is_live(ids))
        tokens[is_last, m] = 0
        tokens[is_last, batch.lengths[is_last]] = end
        return tokens

    for part in parts:
        yield from part.blocks(partial(rows, part.chunks), end_row)
    yield np.broadcast_to(end_row, (_TAIL_ROWS, m + 1))


def _knn(source: ExportSource, parts: list[_Part]) -> Iterator[AnyArray]:
    none = np.full(source.k, -1)
    for part in parts:
        yield from part.blocks(partial(_neighbours, source, parts[0], part), none)
    yield np.broadcast_to(none, (_TAIL_ROWS, source.k))


def _neighbours(source: ExportSource, database: _Part, part: _Part, ids: Int64Array) -> AnyArray:
    if not part.has_neighbours:
        return np.full((len(ids), source.k), -1)
    return database.rows(source.neighbours(ids))


def _sequences(part: _Part, span: Span) -> Int64Array:
    """The rows that sequences of a span begin with: every `SEQUENCE_CHUNKS` from the start of a run."""
    position = np.arange(len(span))
    starts = span.run_starts
    in_run = position - starts[np.searchsorted(starts, position, side="right") - 1]
    return part.rows(span.first + position[in_run % SEQUENCE_CHUNKS == 0])


def _documents(parts: list[_Part]) -> Iterator[AnyArray]:
    """A number for every document, counted through; the empty row behind a run is of its document."""
    first = 0
    for part in parts:
        for span in part.layout.spans:
            sizes = span.run_sizes + 1
            yield np.repeat(first + np.arange(len(sizes)), sizes)
            first += len(sizes)
