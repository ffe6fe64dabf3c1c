"""The task of stage embed: the wanted rows of one shard get their vectors, or their place in the index.

A row's vector comes from a file that has it already (an equal text was embedded before) or from a window that the encoder has
just finished. Either way it is looked up when the output is written, so that no more than a block is ever in memory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import current_process
from typing import Any

import numpy as np

from retrodb.ann.codebook import load_codebook
from retrodb.config import EmbedParams, from_mapping
from retrodb.encode.conventions import Overrides
from retrodb.encode.encoder import Encoder
from retrodb.encode.resolve import resolve_encoder
from retrodb.engine.task import Task, TaskRecord
from retrodb.errors import MismatchError
from retrodb.format.arrays import Float16Array, Int64Array, growing_array, map_array
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.embed.windows import TextFile, Windows, encode_windows, forget_windows, windows_folder
from retrodb.stages.index.part_task import publish_part
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

_BLOCK_ROWS = 16_384  # rows of the output written at once


@dataclass(frozen=True)
class Hardware:
    """What an encoder runs on: provenance, never identity."""

    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"  # compute dtype
    batch_tokens: int | None = None  # token budget of a batch; None goes by the device
    threads: int | None = None  # CPU threads of this process; None is one per core
    gpus: int = 1  # that share the tasks, one process each


_CONVENTION = ("pooling", "pooling_span", "normalise", "metric", "query_prefix", "passage_prefix", "max_length")


@lru_cache(maxsize=4)
def load_encoder(params: EmbedParams, hardware: Hardware) -> Encoder:
    """The encoder of a space, loaded once a process."""
    convention = {name: getattr(params, name) for name in _CONVENTION}
    overrides = Overrides(**{name: value for name, value in convention.items() if value is not None})
    return resolve_encoder(
        params.encoder,
        device=hardware.device,
        dtype=hardware.dtype,
        batch_tokens=hardware.batch_tokens,
        threads=hardware.threads,
        overrides=None if overrides == Overrides() else overrides,
        query_model=params.query_model,
    )


@dataclass
class Meter:
    """What the encoder has done in this process; not what earlier attempts left."""

    chunks: int = 0
    tokens: int = 0
    flops: float = 0.0
    elapsed_s: float = 0.0

    def add(self, windows: Windows, elapsed_s: float) -> None:
        """Count the windows of a task that were computed now."""
        self.chunks, self.tokens = self.chunks + windows.computed, self.tokens + windows.computed_tokens
        self.flops, self.elapsed_s = self.flops + windows.flops, self.elapsed_s + elapsed_s


def run_embed_task(
    storage: Storage, task: Task[Any, Any], clock: str, *, params: Mapping[str, Any], hardware: Hardware, meter: Meter
) -> TaskRecord[Any]:
    """Embed the wanted rows of one file of chunks."""
    del clock  # vectors know no time
    payload = task.payload
    encoder = load_encoder(
        from_mapping(EmbedParams, params, where="space"), on_own_gpu(hardware, current_process().name)
    )
    if encoder.identity.fingerprint() != payload["fingerprint"]:
        raise MismatchError("the encoder of this worker is not the space's", where=f"space '{payload['space']}'")
    rows = _row_set(payload["num_chunks"], payload["rows"])
    positions = _row_set(payload["num_chunks"], payload["stored"]).rank(rows.present)  # in the files of the shard
    known = map_array(storage.local(payload["origins"])) if payload["origins"] else np.empty((0, 3), np.int64)
    fresh = np.delete(np.arange(len(rows)), known[:, 0])
    hashes = np.ascontiguousarray(map_array(storage.local(payload["hashes"]))[positions[fresh]]).view("S16")
    first, ordinal = _distinct(hashes)
    chosen = fresh[first]
    texts = TextFile(payload["chunks"], positions[chosen], payload["first_chunk"] + rows.present[chosen])
    folder = windows_folder(payload["run"], task.id)
    start = time.perf_counter()
    windows = encode_windows(storage, folder, encoder, texts, payload["window_rows"])
    meter.add(windows, time.perf_counter() - start)
    arrays = [*(map_array(storage.local(path)) for path in payload["reuse"]), *windows.arrays]
    vectors = GatheredVectors(arrays, len(rows), encoder.identity.dimension)
    vectors.assign(known[:, 0], known[:, 1], known[:, 2])
    vectors.assign(fresh, len(payload["reuse"]) + ordinal // payload["window_rows"], ordinal % payload["window_rows"])
    files = _publish(storage, task, rows, vectors)
    forget_windows(storage, folder)
    counts = {
        "query_rows" if payload["query_set"] else "chunks": len(rows),
        "reused": len(known),
        "repeated": len(fresh) - len(first),
        "tokens": windows.tokens,
        "truncated": windows.truncated,
    }
    return TaskRecord(task.id, files, {}, counts)


def on_own_gpu(hardware: Hardware, process: str) -> Hardware:
    """The hardware of a process: of several GPUs, workers that were started one after the other take one each."""
    if hardware.gpus == 1:
        return hardware
    number = re.search(r"\d+$", process)
    return replace(hardware, device=f"cuda:{(int(number[0]) - 1 if number else 0) % hardware.gpus}")


class GatheredVectors:
    """Vectors (N, D) float16 of a task's rows, wherever they lie: a block is put together when it is asked for."""

    def __init__(self, arrays: Sequence[Float16Array], num_rows: int, dimension: int) -> None:
        self.arrays, self.shape = arrays, (num_rows, dimension)
        self._array_N = np.zeros(num_rows, dtype=np.int32)
        self._position_N = np.zeros(num_rows, dtype=np.int64)

    def assign(self, rows: Int64Array, arrays: Int64Array, positions: Int64Array) -> None:
        """Say where the vectors of some rows are: in which array, and at which position."""
        self._array_N[rows], self._position_N[rows] = arrays, positions

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Int64Array) -> Float16Array:
        array_B, position_B = self._array_N[rows], self._position_N[rows]
        block = np.empty((len(array_B), self.shape[1]), dtype=np.float16)
        for index in np.unique(array_B):
            here = np.flatnonzero(array_B == index)
            block[here] = self.arrays[index][position_B[here]]
        return block


def _distinct(hashes: np.ndarray[Any, np.dtype[np.bytes_]]) -> tuple[Int64Array, Int64Array]:
    """The first place of every distinct hash, ascending, and for every hash the number of its own among these."""
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    in_order = np.argsort(first)
    number = np.empty(len(first), dtype=np.int64)
    number[in_order] = np.arange(len(first))
    return first[in_order], number[which]


def _row_set(num_rows_total: int, bitmap: str | None) -> RowSet:
    return RowSet(num_rows_total, None if bitmap is None else bytes.fromhex(bitmap))


def _publish(storage: Storage, task: Task[Any, Any], rows: RowSet, vectors: GatheredVectors) -> tuple[FileRecord, ...]:
    payload = task.payload
    space, query_set, first = payload["space"], payload["query_set"], payload["first_chunk"]
    if payload["codebook"] and not query_set:
        codebook = load_codebook(storage.read(payload["codebook"]))
        return publish_part(storage, space, task.id, vectors, codebook, first, rows)
    if query_set:
        kind, name = "queries", query_set
        path = path_of("queries", name=query_set, task=task.id, file=f"vectors.{space}.npy")
    else:
        kind, name, path = "vectors", space, path_of("vectors", name=space, task=task.id)

    def write(local: Any) -> None:
        with growing_array(local, np.dtype(np.float16), (vectors.shape[1],)) as append:
            for start in range(0, len(vectors), _BLOCK_ROWS):
                append(vectors[start : start + _BLOCK_ROWS])

    return (publish(storage, kind, path, write, name=name, first_chunk=first, rows=rows),)
