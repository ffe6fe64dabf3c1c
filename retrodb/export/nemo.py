"""Export for NeMo's RETRO: `KNNIndex` and `MMapRetrievalIndexedDataset`.

    retrieval.{bin,idx}   the database; a document is a run of chunks and a chunk of padding
    train.{bin,idx}       a document of padding, then the rows of the query set without that padding
    knn.idx               for every training chunk its neighbours' chunk ids in `retrieval`, -1 for none

The reader takes the chunk after a neighbour as its continuation, and -1 as the last chunk. So the last document is only padding.
Of the training data it asserts that document 0 ends in padding or in the end of a document, as NeMo's own builder leaves it: so
document 0 is a chunk of padding without neighbours.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from retrodb.corpus.special_tokens import special_ids
from retrodb.export.export_source import ExportSource
from retrodb.export.folder import ExportFile
from retrodb.export.padding import IntegerDtype, padded_chunk_tokens, token_dtype
from retrodb.export.positions import ExportPositions
from retrodb.format.arrays import AnyArray
from retrodb.view.chunk_set import ChunkSet

_KNN_MAGIC, _IDX_MAGIC = b"KNNRETM\x00\x00", b"MMIDRET\x00\x00"
_DTYPE_CODES = {"int32": 4, "uint16": 8}


def nemo_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export."""
    knn_size = len(_KNN_MAGIC) + 32 + 8 * source.k * (1 + len(source.rows))
    return [
        *_dataset(source, "retrieval", source.database, source.chunks, source.chunks_digest, is_retrieval=True),
        *_dataset(source, "train", source.queries, source.rows, source.rows_digest, is_retrieval=False),
        ExportFile("knn.idx", knn_size, source.neighbours_digest, partial(_write_knn, source)),
    ]


def _write_knn(source: ExportSource, path: Path) -> None:
    with path.open("wb") as file:
        file.write(_KNN_MAGIC + struct.pack("<QQQQ", 1, source.k, 1 + len(source.rows), 0))
        file.write(np.full(source.k, -1, dtype=np.int64).data)
        for ids in source.rows.blocks():
            file.write(source.neighbours(ids).data)


def _dataset(
    source: ExportSource,
    name: str,
    chunks: ChunkSet,
    positions: ExportPositions,
    inputs_digest: Callable[[], str],
    *,
    is_retrieval: bool,
) -> Iterator[ExportFile]:
    pad = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size).pad
    m, dtype = source.chunk_tokens, token_dtype(max(pad, source.settings.vocab_size - 1))
    padding = np.full(m, pad, dtype=dtype)

    def write_tokens(path: Path) -> None:
        with path.open("wb") as file:
            file.write(padding.data if not is_retrieval else b"")
            for span in positions.spans:
                for ids, ends in span.blocks_with_ends():
                    tokens = padded_chunk_tokens(chunks, ids, pad, dtype)
                    file.write((np.insert(tokens, ends, padding, axis=0) if is_retrieval else tokens).data)
            file.write(np.tile(padding, 2 if is_retrieval else 0).data)

    def write_index(path: Path) -> None:
        one, runs = np.ones(1, dtype=np.int64), [span.run_sizes for span in positions.spans]
        sizes = np.concatenate([*runs, one] if is_retrieval else [one, *runs])
        path.write_bytes(_index(sizes, m, dtype, is_retrieval))

    num_chunks = len(positions) + (positions.num_runs + 2 if is_retrieval else 1)
    yield ExportFile(f"{name}.bin", num_chunks * m * dtype.itemsize, inputs_digest, write_tokens)
    index_size = len(_IDX_MAGIC) + 34 + 20 * (positions.num_runs + 1) + 8 * (len(positions) + 1)
    yield ExportFile(f"{name}.idx", index_size, lambda: positions.digest, write_index)


def _index(sizes: AnyArray, m: int, dtype: IntegerDtype, is_retrieval: bool) -> bytes:
    """Documents of `sizes` chunks: their tokens, where they begin, their first chunk ids, and where every chunk begins."""
    stored = sizes + is_retrieval  # chunks of each with its padding
    chunk_bytes = m * dtype.itemsize
    first_stored, first_chunk = np.cumsum(stored) - stored, np.cumsum(sizes) - sizes
    in_document = np.arange(int(sizes.sum())) - np.repeat(first_chunk, sizes)
    addresses = (np.repeat(first_stored, sizes) + in_document) * chunk_bytes
    head = struct.pack("<LLBQQQB", 1, m, _DTYPE_CODES[dtype.name], len(sizes), m, len(addresses), is_retrieval)
    columns = ((sizes * m).astype(np.int32), first_stored * chunk_bytes, first_chunk, addresses)
    return _IDX_MAGIC + head + b"".join(column.tobytes() for column in columns)
