"""Export for Megatron-LM's RETRO: a project folder that `megatron.core.datasets.retro` of megatron-core 0.8 to 0.15 reads.

    config.json                       retro_gpt_*, retro_block_size, retro_neighbor_dirs
    data/db-<span>.{bin,idx}          the database's tokens; a sequence is a run of chunks, each padded to its full length
    db/indexed_dataset_infos.json     the data files in their order
    db/merged/train.hdf5              chunks (N, 5) uint32: data file, sequence, first token, end, tokens
    query/<name>/<start>-<end>.hdf5   neighbors (100,000, K) int64: rows of `chunks`, -1 padded

The reader takes the row after a neighbour as its continuation, whatever document it belongs to, and -1 as the last row. So a row
without tokens, which it reads as padding, comes before the first run and after every run.

A running reader has the data files mapped and opens the neighbours' files for every sample, so deletions reach it: a refresh
overwrites the tokens of deleted chunks with the end-of-document token in the mapped file, and replaces the neighbours' files. The
name of their folder hashes the positions of all chunks: after an export with other positions a running reader finds no file, and
never rows with another meaning. On network filesystems a mapping may be late.
"""

from __future__ import annotations

import importlib
import math
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from retrodb.corpus.special_tokens import SpecialIds, special_ids
from retrodb.errors import MissingDependency, UsageError
from retrodb.export.export_source import ExportSource, arrays_digest
from retrodb.export.folder import ExportFile, fixed_file, json_file
from retrodb.export.padding import IntegerDtype, padded_chunk_tokens, token_dtype
from retrodb.export.positions import BLOCK_CHUNKS, PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.entries import QueriesEntry

BLOCK_ROWS = 100_000  # rows of a neighbours' file (retro_block_size)
MIN_NEIGHBOURS = 20  # as many as Megatron itself keeps: a trainer may read more than there are, and finds padding
_IDX_MAGIC, _DTYPE_CODES = b"MMIDIDX\x00\x00", {"int32": 4, "uint16": 8}


def megatron_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export.

    Raises:
        UsageError: when there is no chunk.
        MissingDependency: without h5py.
    """
    _h5py()
    if not len(source.chunks):
        raise UsageError("the database has no live chunk to export")
    special = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size)
    return [
        *(file for number in range(len(source.chunks.spans)) for file in _data_files(source, number, special)),
        json_file("db/indexed_dataset_infos.json", _infos(source)),
        _merged(source, "train", source.chunks.spans),
        _merged(source, "valid", ()),
        _merged(source, "sampled", ()),
        *_neighbour_files(source),
        json_file("config.json", _config(source, special)),
    ]


def _data_files(source: ExportSource, number: int, special: SpecialIds) -> Iterator[ExportFile]:
    span = source.chunks.spans[number]
    dtype = token_dtype(max(special.end, source.settings.vocab_size - 1))
    size = len(span) * source.chunk_tokens * dtype.itemsize
    tokens = partial(padded_chunk_tokens, source.database, pad=special.end, dtype=dtype)

    def inputs_digest() -> str:
        return arrays_digest([_bytes(source.chunks.digest), *map(source.database.is_live, span.blocks())])

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for ids in span.blocks():
                file.write(tokens(ids).data)

    yield ExportFile(
        f"data/{_prefix(number)}.bin", size, inputs_digest, write, partial(_patch, span, tokens), must_reopen=False
    )
    yield fixed_file(f"data/{_prefix(number)}.idx", _idx(span.run_sizes * source.chunk_tokens, dtype))


def _patch(span: PositionSpan, tokens: Callable[[Int64Array], AnyArray], path: Path) -> None:
    """Overwrite the chunks that differ from the content of the file, each with one write."""
    with path.open("r+b", buffering=0) as file:
        offset = 0
        for ids in span.blocks():
            new = tokens(ids)
            old = np.frombuffer(os.pread(file.fileno(), new.nbytes, offset), new.dtype).reshape(new.shape)
            for row in np.flatnonzero((new != old).any(axis=1)).tolist():
                os.pwrite(file.fileno(), new[row].tobytes(), offset + row * new[row].nbytes)
            offset += new.nbytes
        os.fsync(file.fileno())


def _idx(lengths: Int64Array, dtype: IntegerDtype) -> bytes:
    """The index of a data file: for each sequence its length in tokens, its start in bytes, and a document of its own."""
    pointers = (np.cumsum(lengths) - lengths) * dtype.itemsize
    documents = np.arange(len(lengths) + 1, dtype=np.int64)
    head = struct.pack("<QBQQ", 1, _DTYPE_CODES[dtype.name], len(lengths), len(documents))
    return _IDX_MAGIC + head + lengths.astype(np.int32).tobytes() + pointers.tobytes() + documents.tobytes()


def _merged(source: ExportSource, name: str, spans: tuple[PositionSpan, ...]) -> ExportFile:
    """A file of chunk rows. It never changes, because positions never change."""
    num_rows = 2 + sum(len(span) + len(span.run_starts) for span in spans) if spans else 0
    num_runs = sum(len(span.run_starts) for span in spans)

    def write(path: Path) -> None:
        with _h5py().File(path, "w") as file:
            chunks = file.create_dataset("chunks", (num_rows, 5), dtype="uint32")
            offsets = file.create_dataset("doc_offsets", (num_runs, 3), dtype="uint64")
            file.create_dataset("n_written", data=np.array([num_rows], dtype=np.uint64))
            row, run = 1, 0
            for number, span in enumerate(spans):
                rows = _chunk_rows(source, number, span)
                ends = row + np.cumsum(span.run_sizes + 1)
                chunks[row : row + len(rows)] = rows
                offsets[run : run + len(ends)] = np.stack(
                    [np.full(len(ends), number), np.arange(len(ends)), ends], axis=1
                )
                row, run = row + len(rows), run + len(ends)

    size = 4096 + 20 * num_rows + 24 * num_runs
    return ExportFile(f"db/merged/{name}.hdf5", size, lambda: f"{name}-{source.chunks.digest}", write)


def _chunk_rows(source: ExportSource, number: int, span: PositionSpan) -> Int64Array:
    """Rows of `chunks` for a span: data file, sequence, first token, end, tokens. An empty row ends every run."""
    starts = span.run_starts
    position = np.arange(len(span))
    run = np.searchsorted(starts, position, side="right") - 1
    first = (position - starts[run]) * source.chunk_tokens
    lengths = np.concatenate([source.database.lengths(ids) for ids in span.blocks()])
    chunks = np.stack([np.full(len(span), number), run, first, first + lengths, lengths], axis=1)
    ends = span.run_sizes * source.chunk_tokens
    empty = np.stack([np.full(len(starts), number), np.arange(len(starts)), ends, ends, 0 * ends], axis=1)
    rows: Int64Array = np.insert(chunks, np.append(starts[1:], len(span)), empty, axis=0)
    return rows


def _neighbour_files(source: ExportSource) -> Iterator[ExportFile]:
    total = len(source.rows)
    digits = math.ceil(math.log10(total)) + 1 if total else 1
    for start in range(0, total, BLOCK_ROWS):
        stop = min(total, start + BLOCK_ROWS)
        blocks = partial(_neighbour_blocks, source, start, stop)
        name = f"{start:0{digits}d}-{stop:0{digits}d}.hdf5"
        width = max(source.k, MIN_NEIGHBOURS)
        size = 4096 + (stop - start) * width * 8
        write = partial(_write_neighbours, blocks, (stop - start, width))
        digest = partial(_blocks_digest, blocks)
        yield ExportFile(f"query/{_neighbour_folder(source)}/{name}", size, digest, write, must_reopen=False)


def _blocks_digest(blocks: Callable[[], Iterator[Int64Array]]) -> str:
    return arrays_digest(blocks())


def _neighbour_blocks(source: ExportSource, start: int, stop: int) -> Iterator[Int64Array]:
    """(Q, K) rows of `chunks` for query rows by position. An empty row comes first, and another after every run."""
    for first in range(start, stop, BLOCK_CHUNKS):
        positions = source.neighbours(source.rows.ids(first, min(stop, first + BLOCK_CHUNKS)))
        yield np.where(positions >= 0, positions + source.chunks.runs_until(positions), -1)


def _write_neighbours(blocks: Callable[[], Iterator[Int64Array]], shape: tuple[int, int], path: Path) -> None:
    with _h5py().File(path, "w") as file:
        neighbours = file.create_dataset("neighbors", shape, dtype="int64", fillvalue=-1)
        row = 0
        for block in blocks():
            neighbours[row : row + len(block), : block.shape[1]] = block
            row += len(block)


def _infos(source: ExportSource) -> list[dict[str, object]]:
    spans = source.chunks.spans
    return [
        {
            "ratio": len(span) / len(source.chunks),
            "prefix": _prefix(number),
            "n_docs": len(span.run_starts),
            "n_docs_train": len(span.run_starts),
            "n_chunks": len(span) + len(span.run_starts),
            "n_chunks_train": len(span) + len(span.run_starts),
            "n_chunks_invalid": 0,
            "n_chunks_sampled": 0,
        }
        for number, span in enumerate(spans)
    ]


def _config(source: ExportSource, special: SpecialIds) -> dict[str, object]:
    """What a trainer reads about the preprocessing; null for what has no meaning here, or what only the trainer knows."""
    queries = source.view.snapshot.entry(QueriesEntry, source.table.query_set)
    samples = (queries and queries.megatron) or {}
    subset = samples.get("subset", "train")
    return {
        "retro_block_size": BLOCK_ROWS,
        "retro_gpt_chunk_length": source.chunk_tokens,
        "retro_gpt_seed": samples.get("seed", 1234),
        "retro_gpt_data_path": samples.get("blend"),
        "retro_gpt_data_cache_path": None,
        "retro_gpt_split": samples.get("split", "100,0,0"),
        "retro_gpt_train_samples": samples.get("train_samples", len(source.rows)),
        "retro_gpt_eval_interval": None,
        "retro_gpt_eval_iters": None,
        "retro_gpt_tokenizer_type": None,
        "retro_gpt_tokenizer_model": source.settings.tokenizer_name,
        "retro_gpt_vocab_file": None,
        "retro_gpt_merge_file": None,
        "retro_gpt_seq_length": (queries and queries.seq_length) or source.chunk_tokens,
        "retro_gpt_global_batch_size": None,
        "retro_gpt_eod_token": special.end,
        "retro_bert_tokenizer_type": None,
        "retro_bert_vocab_file": None,
        "retro_neighbor_dirs": dict.fromkeys(("train", "valid", "test")) | {subset: _neighbour_folder(source)},
    }


def _neighbour_folder(source: ExportSource) -> str:
    return f"{source.table.name}-{source.chunks.digest[:16]}"


def _prefix(number: int) -> str:
    return f"db-{number:05d}"


def _bytes(text: str) -> AnyArray:
    return np.frombuffer(text.encode(), np.uint8)


def _h5py() -> ModuleType:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise MissingDependency(
            "the megatron format needs h5py", remedy="Run: pip install 'retrodb[megatron]'."
        ) from error
