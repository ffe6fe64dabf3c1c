"""Windows: a fixed number of texts of a task that are encoded together and stored as soon as they are finished.

A finished window is a file of the run, so a killed task continues after its last one. The rows and the plan alone decide what
a window contains, so the same bytes result however often the task was interrupted. Memory grows by a few bytes per row
only: texts are read one row group at a time, and vectors stay in the files of the windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.encode.batching import row_windows
from retrodb.encode.encoder import EncodedBatch, Encoder, NotFiniteError
from retrodb.errors import DamagedFileError, InputError
from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.arrays import Float16Array, Int64Array, map_array, save_array
from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_row_groups
from retrodb.store.digest import root_of_file
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TextFile:
    """Chunk texts by position in a file of chunks."""

    path: str  # of the Parquet file in the storage
    positions: Int64Array  # (N,) ascending: where in the file the texts are
    chunk_ids: Int64Array  # (N,) their chunks, to name one in an error


@dataclass(frozen=True)
class EncodedWindows:
    """The vectors of N texts, in windows on disk."""

    arrays: list[Float16Array]  # memory-mapped, except an only window; all but the last have `window_rows` rows
    num_tokens: int  # of the encoder, special tokens included
    num_truncated: int  # texts of which only the beginning was read
    num_flops: float  # of the windows that were computed now, not read from an earlier attempt
    num_computed_rows: int  # texts of these windows
    num_computed_tokens: int  # tokens of these windows


@dataclass(frozen=True)
class _WindowRecord:
    """What is stored next to the vectors of a finished window. It is written last."""

    tokens: int
    truncated: int
    xxh3: bytes  # of the file of vectors


def encode_windows(
    storage: Storage, folder: str, encoder: Encoder, texts: TextFile, window_rows: int
) -> EncodedWindows:
    """Encode texts window by window. Windows that an earlier attempt finished are verified and reused.

    The only window of a small task is not stored: nothing would be computed between it and the output of the task.

    Args:
        folder: where the windows are stored, inside the run's folder.

    Raises:
        InputError: when the encoder gave a vector with NaN or infinity; names the chunk.
    """
    spans = list(row_windows(len(texts.positions), window_rows=window_rows))
    finished = [_read_window(storage, folder, number) for number in range(len(spans))]
    missing = [span for span, window in zip(spans, finished, strict=True) if window is None]
    batches = _encode(storage, encoder, texts, missing)
    num_flops, num_rows, num_tokens = 0.0, 0, 0
    stored = []
    for number, window in enumerate(finished):
        if window is None:
            batch = next(batches)
            num_flops += encoder.num_flops(batch.num_tokens_N)
            num_rows, num_tokens = num_rows + len(batch.num_tokens_N), num_tokens + batch.num_tokens
            is_only = len(spans) == 1  # the caller publishes it at once
            window = _unstored(batch) if is_only else _store_window(storage, folder, number, batch)
        stored.append(window)
    return EncodedWindows(
        arrays=[vectors for vectors, _ in stored],
        num_tokens=sum(record.tokens for _, record in stored),
        num_truncated=sum(record.truncated for _, record in stored),
        num_flops=num_flops,
        num_computed_rows=num_rows,
        num_computed_tokens=num_tokens,
    )


def forget_windows(storage: Storage, folder: str) -> None:
    """Delete the windows of a task whose output is published: every vector is in it."""
    for path in storage.list(folder):
        storage.delete(path)


def _encode(
    storage: Storage, encoder: Encoder, texts: TextFile, spans: list[tuple[int, int]]
) -> Iterator[EncodedBatch]:
    inputs = (_read_texts(storage, texts.path, texts.positions[start:end]) for start, end in spans)
    results = iter(encoder.encode_windows(inputs))
    for start, _ in spans:
        try:
            yield next(results)
        except NotFiniteError as error:
            chunk = int(texts.chunk_ids[start + error.row])
            raise InputError(error.what, where=f"chunk {chunk} ({texts.path})", remedy=error.remedy) from error


def _read_texts(storage: Storage, path: str, positions: Int64Array) -> pa.Array:
    """The texts at some positions. Only their row groups are read."""
    group_of = positions // ROW_GROUP_ROWS
    groups = np.unique(group_of)
    column = read_row_groups(storage.local(path), groups.tolist(), ["text"]).column("text")
    rows = np.searchsorted(groups, group_of) * ROW_GROUP_ROWS + positions % ROW_GROUP_ROWS
    return column.combine_chunks().take(rows)


def _store_window(
    storage: Storage, folder: str, number: int, batch: EncodedBatch
) -> tuple[Float16Array, _WindowRecord]:
    """Publish a window and then its record: without the record the window does not count as finished."""
    path = f"{folder}/{number:05d}.npy"
    file = publish(storage, "runs", path, lambda local: save_array(local, batch.vectors_ND))
    record = _WindowRecord(batch.num_tokens, batch.num_truncated, file.digest.xxh3)
    storage.write(f"{folder}/{number:05d}.json", to_json(record))
    return map_array(storage.local(path)), record


def _unstored(batch: EncodedBatch) -> tuple[Float16Array, _WindowRecord]:
    return batch.vectors_ND, _WindowRecord(batch.num_tokens, batch.num_truncated, b"")


def _read_window(storage: Storage, folder: str, number: int) -> tuple[Float16Array, _WindowRecord] | None:
    """A verified window of an earlier attempt; None when it has to be computed."""
    record_path, vectors_path = (f"{folder}/{number:05d}.{ending}" for ending in ("json", "npy"))
    if not (storage.exists(record_path) and storage.exists(vectors_path)):
        return None
    try:
        record = from_json(_WindowRecord, storage.read(record_path), where=record_path)
    except DamagedFileError:
        return None
    path = storage.local(vectors_path)
    return (map_array(path), record) if root_of_file(path) == record.xxh3 else None


def windows_folder(run: str, task: str) -> str:
    """The folder of the windows of a task."""
    return path_of("runs", run=run, file=f"windows/{task}")
