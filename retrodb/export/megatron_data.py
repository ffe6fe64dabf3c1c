"""Token files of Megatron: `<prefix>.bin` with the tokens, and `<prefix>.idx` with the length and the start of each sequence.

A running trainer has them mapped, so a refresh overwrites the tokens of deleted chunks in place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from retrodb.export.export_file import ExportFile, FileRange, RangedPiece, ranged_file, whole_file
from retrodb.export.export_source import live_chunks_digest
from retrodb.export.limits import INT32_MAX, check_count
from retrodb.export.padding import IntegerDtype, padded_chunk_tokens
from retrodb.export.positions import PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet

_IDX_MAGIC, _DTYPE_CODES = b"MMIDIDX\x00\x00", {"int32": 4, "uint16": 8}
_BLOCK_RUNS = 1 << 20


@dataclass(frozen=True)
class SpanTokens:
    """The chunks of one span of positions; each run of them is a sequence."""

    chunks: ChunkSet
    span: PositionSpan


def data_files(
    prefix: str, parts: Sequence[SpanTokens], *, chunk_tokens: int, pad: int, dtype: IntegerDtype
) -> Iterator[ExportFile]:
    """The two files of a prefix below `data/`: spans one after the other, each chunk padded to its full length.

    Raises:
        UsageError: when a sequence has more tokens than a signed 32-bit number can count.
    """
    longest = max((part.span.record.longest_run for part in parts), default=0) * chunk_tokens
    remedy = "Split long documents before 'retrodb ingest', or export with --to arrays."
    check_count("tokens in a document", longest, INT32_MAX, "megatron", remedy)
    pieces, offset = [], 0
    for part in parts:
        pieces.append(_tokens_piece(part, offset, chunk_tokens, pad, dtype))
        offset += pieces[-1].ranges[0].size_bytes
    yield ranged_file(f"data/{prefix}.bin", pieces, is_patched=True, must_reopen=False)
    spans = [part.span for part in parts]
    num_runs = sum(span.record.num_runs for span in spans)
    yield whole_file(
        f"data/{prefix}.idx",
        42 + 20 * num_runs,
        lambda: identity([span.record.digest for span in spans]),
        partial(write_index, spans=spans, chunk_tokens=chunk_tokens, dtype=dtype),
    )


def _tokens_piece(part: SpanTokens, offset: int, chunk_tokens: int, pad: int, dtype: IntegerDtype) -> RangedPiece:
    def blocks() -> Iterator[AnyArray]:
        return (padded_chunk_tokens(part.chunks, ids, pad, dtype) for ids in part.span.blocks())

    size = len(part.span) * chunk_tokens * dtype.itemsize
    return RangedPiece(partial(live_chunks_digest, part.chunks, part.span), [FileRange(offset, size, blocks)])


def write_index(path: Path, spans: Sequence[PositionSpan], chunk_tokens: int, dtype: IntegerDtype) -> None:
    """Write the index of a data file: for each run its length in tokens, its start in bytes, and a document of its own."""
    num_runs = sum(span.record.num_runs for span in spans)
    chunk_bytes = chunk_tokens * dtype.itemsize
    with path.open("wb") as file:
        file.write(_IDX_MAGIC + struct.pack("<QBQQ", 1, _DTYPE_CODES[dtype.name], num_runs, num_runs + 1))
        for span in spans:
            file.write((span.run_sizes * chunk_tokens).astype(np.int32).data)
        first = 0
        for span in spans:
            file.write(((first + span.run_starts) * chunk_bytes).data)
            first += len(span)
        for start in range(0, num_runs + 1, _BLOCK_RUNS):
            file.write(np.arange(start, min(num_runs + 1, start + _BLOCK_RUNS), dtype=np.int64).data)


def run_sizes(spans: Sequence[PositionSpan]) -> Int64Array:
    """The chunks of each run of all spans."""
    return np.concatenate([np.empty(0, np.int64), *(span.run_sizes for span in spans)])
