"""Windows: the texts of a task through the encoder, a fixed number of rows at a time, each kept as soon as it is finished.

A finished window is a file of the run, so that a killed task continues behind its last one. What a window holds follows from
the rows and the plan alone, so the same bytes come out however often the task was interrupted. Nothing here grows with the
shard but a few bytes a row: texts are read a row group at a time, vectors lie in the windows' files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson

from retrodb.encode.batching import row_windows
from retrodb.encode.encoder import EncodedBatch, Encoder, NotFiniteError
from retrodb.errors import InputError
from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.arrays import Float16Array, Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_row_groups
from retrodb.store.digest import xxh3_file
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
class Windows:
    """The vectors of N texts, in windows on disk."""

    arrays: list[Float16Array]  # memory-mapped, window_rows rows each but the last
    tokens: int  # of the encoder, special ones included
    truncated: int  # texts of which only the beginning was read
    flops: float  # of the windows that were computed now, not read from an earlier attempt
    computed: int  # texts of these
    computed_tokens: int  # and their tokens


def encode_windows(storage: Storage, folder: str, encoder: Encoder, texts: TextFile, window_rows: int) -> Windows:
    """Encode texts window by window; windows that an earlier attempt finished are verified and kept.

    Args:
        folder: place of the windows, below the run's own files.

    Raises:
        InputError: the encoder gave a vector that is not finite; the chunk is named.
    """
    spans = list(row_windows(len(texts.positions), window_rows=window_rows))
    kept = [_read_window(storage, folder, number) for number in range(len(spans))]
    missing = [span for span, window in zip(spans, kept, strict=True) if window is None]
    batches = _encode(storage, encoder, texts, missing)
    found, flops, computed, computed_tokens = [], 0.0, 0, 0
    for number, window in enumerate(kept):
        if window is None:
            batch = next(batches)
            flops += encoder.num_flops(batch.num_tokens_N)
            computed, computed_tokens = computed + len(batch.num_tokens_N), computed_tokens + batch.num_tokens
            window = _keep_window(storage, folder, number, batch)
        found.append(window)
    tokens, truncated = (sum(counts[name] for _, counts in found) for name in ("tokens", "truncated"))
    return Windows([vectors for vectors, _ in found], tokens, truncated, flops, computed, computed_tokens)


def forget_windows(storage: Storage, folder: str) -> None:
    """Delete the windows of a task whose output is published: they hold every vector a second time."""
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
    """The texts at some positions, of which only their row groups are read."""
    group_of = positions // ROW_GROUP_ROWS
    groups = np.unique(group_of)
    column = read_row_groups(storage.local(path), groups.tolist(), ["text"]).column("text")
    rows = np.searchsorted(groups, group_of) * ROW_GROUP_ROWS + positions % ROW_GROUP_ROWS
    return column.combine_chunks().take(rows)


def _keep_window(
    storage: Storage, folder: str, number: int, batch: EncodedBatch
) -> tuple[Float16Array, dict[str, int]]:
    """Publish a window, its digest and counts last: without them it does not count as finished."""
    counts = {"tokens": batch.num_tokens, "truncated": batch.num_truncated}
    path = f"{folder}/{number:05d}.npy"
    record = publish(storage, "runs", path, lambda local: save_array(local, batch.vectors_ND))
    storage.write(f"{folder}/{number:05d}.json", orjson.dumps({**counts, "xxh3": record.digest.xxh3.hex()}))
    return map_array(storage.local(path)), counts


def _read_window(storage: Storage, folder: str, number: int) -> tuple[Float16Array, dict[str, int]] | None:
    """A window that an earlier attempt finished, verified; None when it has to be computed."""
    paths = [f"{folder}/{number:05d}.{ending}" for ending in ("json", "npy")]
    if not all(map(storage.exists, paths)):
        return None
    counts, path = orjson.loads(storage.read(paths[0])), storage.local(paths[1])
    if xxh3_file(path).hex() != counts.pop("xxh3"):
        return None
    return map_array(path), counts


def windows_folder(run: str, task: str) -> str:
    """Where a task keeps its windows."""
    return path_of("runs", run=run, file=f"windows/{task}")
