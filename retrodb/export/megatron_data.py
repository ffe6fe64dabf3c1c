"""Token files of Megatron: `<prefix>.bin` with the tokens, and `<prefix>.idx` with the length and the start of each sequence.

A running trainer has them mapped, so a refresh overwrites the tokens of deleted chunks in place.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodb.export.export_source import arrays_digest
from retrodb.export.folder import ExportFile, fixed_file
from retrodb.export.padding import IntegerDtype, padded_chunk_tokens
from retrodb.export.positions import PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.store.digest import identity
from retrodb.view.chunk_set import ChunkSet

_IDX_MAGIC, _DTYPE_CODES = b"MMIDIDX\x00\x00", {"int32": 4, "uint16": 8}


@dataclass(frozen=True)
class SpanTokens:
    """The chunks of one span of positions; each run of them is a sequence."""

    chunks: ChunkSet
    span: PositionSpan


def data_files(
    prefix: str, parts: Sequence[SpanTokens], *, chunk_tokens: int, pad: int, dtype: IntegerDtype
) -> Iterator[ExportFile]:
    """The two files of a prefix below `data/`: spans one after the other, each chunk padded to its full length."""

    def blocks() -> Iterator[AnyArray]:
        for part in parts:
            for ids in part.span.blocks():
                yield padded_chunk_tokens(part.chunks, ids, pad, dtype)

    def inputs_digest() -> str:
        positions = identity(
            [[part.span.first, part.span.chunks.first_chunk, part.span.starts.hex()] for part in parts]
        )
        is_live = (part.chunks.is_live(ids) for part in parts for ids in part.span.blocks())
        return arrays_digest([np.frombuffer(positions.encode(), np.uint8), *is_live])

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for tokens in blocks():
                file.write(tokens.data)

    sizes = run_sizes([part.span for part in parts])
    size_bytes = int(sizes.sum()) * chunk_tokens * dtype.itemsize
    patch = _patcher(blocks)
    yield ExportFile(f"data/{prefix}.bin", size_bytes, inputs_digest, write, patch, must_reopen=False)
    yield fixed_file(f"data/{prefix}.idx", index_bytes(sizes * chunk_tokens, dtype))


def run_sizes(spans: Sequence[PositionSpan]) -> Int64Array:
    """The chunks of each run of all spans."""
    return np.concatenate([np.empty(0, np.int64), *(span.run_sizes for span in spans)])


def _patcher(blocks: Callable[[], Iterator[AnyArray]]) -> Callable[[Path], None]:
    """A function that overwrites the chunks that differ from the content of a file, each with one write."""

    def patch(path: Path) -> None:
        with path.open("r+b", buffering=0) as file:
            offset = 0
            for new in blocks():
                old = np.frombuffer(os.pread(file.fileno(), new.nbytes, offset), new.dtype).reshape(new.shape)
                for row in np.flatnonzero((new != old).any(axis=1)).tolist():
                    os.pwrite(file.fileno(), new[row].tobytes(), offset + row * new[row].nbytes)
                offset += new.nbytes
            os.fsync(file.fileno())

    return patch


def index_bytes(lengths: Int64Array, dtype: IntegerDtype) -> bytes:
    """The index of a data file: for each sequence its length in tokens, its start in bytes, and a document of its own."""
    pointers = (np.cumsum(lengths) - lengths) * dtype.itemsize
    documents = np.arange(len(lengths) + 1, dtype=np.int64)
    head = struct.pack("<QBQQ", 1, _DTYPE_CODES[dtype.name], len(lengths), len(documents))
    return _IDX_MAGIC + head + lengths.astype(np.int32).tobytes() + pointers.tobytes() + documents.tobytes()
