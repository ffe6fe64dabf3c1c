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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from retrodb.corpus.special_tokens import SpecialIds, special_ids
from retrodb.errors import UsageError
from retrodb.export.export_source import ExportSource
from retrodb.export.folder import ExportFile, json_file
from retrodb.export.padding import padded_chunk_tokens
from retrodb.export.positions import ExportPositions, PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet

SEQUENCE_CHUNKS = 32  # 2,048 tokens of the paper
_TAIL_ROWS = 64  # so that a sequence of up to 4,096 tokens may begin at the last row
_MAX_ROWS = (1 << 31) - 1


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

    def blocks(self, of_chunks: Callable[[Int64Array], AnyArray], of_end: AnyArray) -> Iterator[AnyArray]:
        """Rows of chunks, with one more after every run."""
        for span in self.positions.spans:
            for ids, ends in span.blocks_with_ends():
                yield np.insert(of_chunks(ids), ends, of_end, axis=0)


def lucidrains_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export.

    Raises:
        UsageError: when there are more rows than a signed 32-bit number can count.
    """
    parts = _parts(source)
    num_rows = sum(part.num_rows for part in parts)
    if num_rows > _MAX_ROWS:
        raise UsageError(f"{num_rows:,} rows are more than the 32-bit row numbers of this format can count")
    special, offset = _special(source)
    m, k = source.chunk_tokens, source.k
    sequences = np.concatenate(
        [_sequences(parts[-1], span) for span in parts[-1].positions.spans] or [np.empty(0, np.int64)]
    )
    stats = {
        "chunks": num_rows,
        "docs": sum(part.positions.num_runs for part in parts),
        "seqs": len(sequences),
        "eos_id": special.end + offset,
        "token_offset": offset,
        "seq_len": SEQUENCE_CHUNKS * m,
        "num_tokens": max(special.end + 1, source.settings.vocab_size) + offset,
    }
    positions_digest = identity([part.positions.digest for part in parts])
    tokens_digest = partial(_tokens_digest, source, positions_digest)
    return [
        _file("train.chunks.dat", (num_rows + _TAIL_ROWS) * (m + 1), tokens_digest, partial(_tokens, source, parts)),
        _file(
            "train.chunks.knn.dat",
            (num_rows + _TAIL_ROWS) * k,
            source.neighbours_digest,
            partial(_knn, source, parts),
        ),
        _file("train.seq.dat", len(sequences), lambda: positions_digest, lambda: iter([sequences])),
        _file("train.doc_ids.dat", num_rows, lambda: positions_digest, partial(_documents, parts)),
        json_file("processed-stats.json", stats),
    ]


def _parts(source: ExportSource) -> list[_Part]:
    database = _Part(source.database, source.chunks, 0, source.has_own_rows)
    return (
        [database] if source.has_own_rows else [database, _Part(source.queries, source.rows, database.num_rows, True)]
    )


def _special(source: ExportSource) -> tuple[SpecialIds, int]:
    """The special tokens, and the offset added to all ids so that 0 is no text."""
    special = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size)
    return special, 0 if special.pad == 0 and special.end != 0 else 1


def _tokens_digest(source: ExportSource, positions_digest: str) -> str:
    return identity(positions_digest, source.chunks_digest(), source.rows_digest())


def _file(
    path: str, num_values: int, inputs_digest: Callable[[], str], blocks: Callable[[], Iterator[AnyArray]]
) -> ExportFile:
    def write(file: Path) -> None:
        with file.open("wb") as sink:
            for block in blocks():
                sink.write(np.ascontiguousarray(block, dtype=np.int32).data)

    return ExportFile(path, 4 * num_values, inputs_digest, write)


def _tokens(source: ExportSource, parts: list[_Part]) -> Iterator[AnyArray]:
    special, offset = _special(source)
    end, m = special.end + offset, source.chunk_tokens
    end_row = np.where(np.arange(m + 1) == 0, end, 0)

    def rows(chunks: ChunkSet, ids: Int64Array) -> AnyArray:
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


def _sequences(part: _Part, span: PositionSpan) -> Int64Array:
    """The rows at which the sequences of a span begin: every `SEQUENCE_CHUNKS` rows from the start of a run."""
    position = np.arange(len(span))
    starts = span.run_starts
    in_run = position - starts[np.searchsorted(starts, position, side="right") - 1]
    return part.rows(span.first + position[in_run % SEQUENCE_CHUNKS == 0])


def _documents(parts: list[_Part]) -> Iterator[AnyArray]:
    """The document number of every row, counted from 0. The empty row after a run belongs to its document."""
    first = 0
    for part in parts:
        for span in part.positions.spans:
            sizes = span.run_sizes + 1
            yield np.repeat(first + np.arange(len(sizes)), sizes)
            first += len(sizes)
