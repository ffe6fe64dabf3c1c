"""Export for lucidrains' RETRO-pytorch (`retro_pytorch.RETRODataset`): headerless int32 arrays and `processed-stats.json`.

    train.chunks.dat (N + 64, m + 1)      a chunk's tokens and the next one's first
    train.chunks.knn.dat (N + 64, K)      rows of neighbours, -1 for none
    train.seq.dat (S,)                    the first row of each sequence
    train.doc_ids.dat (N,)                which document each row belongs to
    processed-stats.json                  {chunks, docs, seqs} and what to pass to RETRODataset

The reader pads with 0, takes the row after a neighbour as its continuation unless the neighbour's row has the end-of-document
token, and reads a sequence until that token. So the token follows the last token of every run of chunks, and a row with only that
token follows every run. For a tokenizer in which 0 is text, all ids are raised by one: `token_offset`. After the last row
there are 64 empty rows without neighbours, because the reader extends shorter files with zeros, and 0 is a row.

The reader knows only one array of chunks, so the rows of another query set follow those of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.corpus.special_tokens import SpecialIds, special_ids
from retrodb.export.export_file import ExportFile, FileRange, RangedPiece, json_file, ranged_file
from retrodb.export.export_source import ExportSource
from retrodb.export.limits import INT32_MAX, check_count
from retrodb.export.padding import padded_chunk_tokens
from retrodb.export.positions import SEQUENCE_CHUNKS, ExportPositions, PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet

_TAIL_ROWS = 64  # so that a sequence of up to 4,096 tokens may begin at the last row


@dataclass(frozen=True)
class _Part:
    """The rows of one chunk set in the array of chunks."""

    chunks: ChunkSet
    positions: ExportPositions
    first_row: int
    has_neighbours: bool

    @property
    def num_rows(self) -> int:
        return len(self.positions) + self.positions.num_runs

    def rows(self, positions: Int64Array) -> Int64Array:
        """The row of each position; -1 for -1."""
        runs = self.positions.runs_until(positions)
        return np.where(positions >= 0, self.first_row + positions + runs - 1, -1)

    def span_rows(self, span: PositionSpan) -> _Rows:
        """The rows of a span: its chunks, with one more row after every run."""
        return _Rows(self.first_row + span.first + span.first_run, len(span) + span.record.num_runs)


@dataclass(frozen=True)
class _Rows:
    """A range of rows."""

    first: int
    count: int


def lucidrains_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export.

    Raises:
        UsageError: when there are more rows than a signed 32-bit number can count.
    """
    parts = _parts(source)
    num_rows = sum(part.num_rows for part in parts)
    check_count("rows", num_rows, INT32_MAX, "lucidrains", "Export with --to arrays, which has 64-bit numbers.")
    special, offset = _special(source)
    m, k = source.chunk_tokens, source.k
    stats = {
        "chunks": num_rows,
        "docs": sum(part.positions.num_runs for part in parts),
        "seqs": parts[-1].positions.num_sequences,
        "eos_id": special.end + offset,
        "token_offset": offset,
        "seq_len": SEQUENCE_CHUNKS * m,
        "num_tokens": max(special.end + 1, source.settings.vocab_size) + offset,
    }
    tail = _Rows(num_rows, _TAIL_ROWS)
    tokens = [
        _piece(
            part.span_rows(span),
            m + 1,
            partial(_tokens_digest, source, part, span),
            partial(_tokens, source, part, span),
        )
        for part in parts
        for span in part.positions.spans
    ]
    knn = [
        _piece(
            part.span_rows(span),
            k,
            partial(_knn_digest, source, part, span),
            partial(_knn, source, parts[0], part, span),
        )
        for part in parts
        for span in part.positions.spans
    ]
    no_tokens = _piece(tail, m + 1, lambda: "tail", lambda: [np.tile(_end_row(source), (_TAIL_ROWS, 1))])
    no_neighbours = _piece(tail, k, lambda: "tail", lambda: [np.full((_TAIL_ROWS, k), -1)])
    return [
        ranged_file("train.chunks.dat", [*tokens, no_tokens]),
        ranged_file("train.chunks.knn.dat", [*knn, no_neighbours]),
        ranged_file("train.seq.dat", [_sequence_piece(parts[-1], span) for span in parts[-1].positions.spans]),
        ranged_file("train.doc_ids.dat", list(_document_pieces(parts))),
        json_file("processed-stats.json", stats),
    ]


def _piece(
    rows: _Rows, width: int, inputs_digest: Callable[[], str], blocks: Callable[[], Iterable[AnyArray]]
) -> RangedPiece:
    """Rows of `width` int32 values each."""

    def values() -> Iterator[AnyArray]:
        return (np.ascontiguousarray(block, dtype=np.int32) for block in blocks())

    return RangedPiece(inputs_digest, [FileRange(4 * width * rows.first, 4 * width * rows.count, values)])


def _parts(source: ExportSource) -> list[_Part]:
    database = _Part(source.database, source.chunks, 0, source.has_own_rows)
    return (
        [database] if source.has_own_rows else [database, _Part(source.queries, source.rows, database.num_rows, True)]
    )


def _special(source: ExportSource) -> tuple[SpecialIds, int]:
    """The special tokens, and the offset added to all ids so that 0 is no text."""
    special = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size)
    return special, 0 if special.pad == 0 and special.end != 0 else 1


def _tokens_digest(source: ExportSource, part: _Part, span: PositionSpan) -> str:
    return (source.chunks_digest if part.chunks is source.database else source.rows_digest)(span)


def _knn_digest(source: ExportSource, part: _Part, span: PositionSpan) -> str:
    return source.neighbours_digest(span) if part.has_neighbours else span.record.digest


def _end_row(source: ExportSource) -> AnyArray:
    """(m + 1,) the row that follows every run."""
    special, offset = _special(source)
    return np.where(np.arange(source.chunk_tokens + 1) == 0, special.end + offset, 0)


def _with_ends(span: PositionSpan, of_chunks: Callable[[Int64Array], AnyArray], of_end: AnyArray) -> Iterator[AnyArray]:
    """Rows of the chunks of a span, with one more after every run."""
    for ids, ends in span.blocks_with_ends():
        yield np.insert(of_chunks(ids), ends, of_end, axis=0)


def _tokens(source: ExportSource, part: _Part, span: PositionSpan) -> Iterator[AnyArray]:
    special, offset = _special(source)
    end, m, chunks = special.end + offset, source.chunk_tokens, part.chunks

    def rows(ids: Int64Array) -> AnyArray:
        """(Q, m + 1): the tokens and the first one of the next chunk; `end` after the last token where there is no next."""
        following = chunks.continuation(ids)
        batch = chunks.gather_tokens(ids)
        tokens = np.zeros((len(ids), m + 1), dtype=np.int32)
        is_token = np.arange(m) < batch.lengths[:, None]
        tokens[:, :m] = np.where(is_token, batch.tokens.astype(np.int32) + offset, 0)
        tokens[:, m] = padded_chunk_tokens(chunks, following, special.end, np.dtype(np.int32))[:, 0] + offset
        is_last = np.flatnonzero((following < 0) | ~chunks.is_live(ids))
        tokens[is_last, m] = 0
        tokens[is_last, batch.lengths[is_last]] = end
        return tokens

    return _with_ends(span, rows, _end_row(source))


def _knn(source: ExportSource, database: _Part, part: _Part, span: PositionSpan) -> Iterator[AnyArray]:
    return _with_ends(span, partial(_neighbours, source, database, part), np.full(source.k, -1))


def _neighbours(source: ExportSource, database: _Part, part: _Part, ids: Int64Array) -> AnyArray:
    if not part.has_neighbours:
        return np.full((len(ids), source.k), -1)
    return database.rows(source.neighbours(ids))


def _sequence_piece(part: _Part, span: PositionSpan) -> RangedPiece:
    """The rows at which the sequences of a span begin: every `SEQUENCE_CHUNKS` rows from the start of a run."""

    def sequences() -> list[AnyArray]:
        position, starts = np.arange(len(span)), span.run_starts
        in_run = position - starts[np.searchsorted(starts, position, side="right") - 1]
        return [part.rows(span.first + position[in_run % SEQUENCE_CHUNKS == 0])]

    rows = _Rows(span.first_sequence, span.record.num_sequences)
    return _piece(rows, 1, lambda: span.record.digest, sequences)


def _document_pieces(parts: list[_Part]) -> Iterator[RangedPiece]:
    """The document number of every row, counted from 0. The empty row after a run belongs to its document."""

    def documents(first: int, span: PositionSpan) -> list[AnyArray]:
        return [np.repeat(first + np.arange(span.record.num_runs), span.run_sizes + 1)]

    first = 0
    for part in parts:
        for span in part.positions.spans:
            inputs_digest = partial(identity, first, span.record.digest)
            yield _piece(part.span_rows(span), 1, inputs_digest, partial(documents, first + span.first_run, span))
        first += part.positions.num_runs
