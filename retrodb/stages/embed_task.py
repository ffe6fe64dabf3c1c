"""The task of stage embed: the wanted rows of one shard through the encoder, window by window.

A finished window is published with the run, so that a killed task continues behind its last window. What a window holds
follows from the rows alone, so the same bytes come out however often the task was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from retrodb.config import EmbedParams, from_mapping, to_mapping
from retrodb.encode.batching import windows
from retrodb.encode.conventions import Overrides
from retrodb.encode.encoder import resolve_encoder
from retrodb.encode.identity import EncodedBatch, Encoder
from retrodb.engine.task import Task, TaskRecord
from retrodb.errors import InputError, MismatchError
from retrodb.format.arrays import Float16Array, Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.store.digest import xxh3_file
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Hardware:
    """What an encoder runs on: provenance, never identity."""

    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"  # compute dtype
    batch_tokens: int | None = None  # token budget of a batch; None goes by the device's memory
    threads: int | None = None  # CPU threads of this process; None is one per core


_CONVENTION = ("pooling", "normalise", "metric", "query_prefix", "passage_prefix", "max_length")


@lru_cache(maxsize=4)
def load_encoder(params: EmbedParams, hardware: Hardware) -> Encoder:
    """The encoder of a space, loaded once a process."""
    convention = to_mapping(params)
    overrides = Overrides(**{name: convention[name] for name in _CONVENTION if convention[name] is not None})
    return resolve_encoder(
        params.encoder,
        device=hardware.device,
        dtype=hardware.dtype,
        batch_tokens=hardware.batch_tokens,
        threads=hardware.threads,
        overrides=None if overrides == Overrides() else overrides,
    )


def run_embed_task(
    storage: Storage, task: Task, clock: str, *, params: Mapping[str, Any], hardware: Hardware
) -> TaskRecord:
    """Embed the wanted rows of one file of chunks."""
    del clock  # vectors know no time
    payload = task.payload
    encoder = load_encoder(from_mapping(EmbedParams, params, where="space"), hardware)
    if encoder.identity.fingerprint() != payload["fingerprint"]:
        raise MismatchError("the encoder of this worker is not the space's", where=f"space '{payload['space']}'")
    rows = RowSet(payload["num_chunks"], None if payload["rows"] is None else bytes.fromhex(payload["rows"]))
    vectors = np.zeros((len(rows), encoder.identity.dimension), dtype=np.float16)
    fresh = np.ones(len(rows), dtype=bool)
    for source in payload["reuse"]:
        positions = rows.rank(np.array(source["rows"], dtype=np.int64))
        vectors[positions] = map_array(storage.local(source["path"]))[source["positions"]]
        fresh[positions] = False
    num_reused = int((~fresh).sum())
    numbers = _encode(storage, task, encoder, rows.present, np.flatnonzero(fresh), vectors)
    counts = {"chunks" if not payload["query_set"] else "query_rows": len(rows), "reused": num_reused, **numbers}
    return TaskRecord(task.id, (_publish(storage, task, rows, vectors),), {}, counts)


def _encode(
    storage: Storage, task: Task, encoder: Encoder, rows: Int64Array, fresh: Int64Array, vectors: Float16Array
) -> dict[str, int]:
    """Fill `vectors` at the positions `fresh`; equal texts within the shard are encoded once."""
    hashes = np.asarray(map_array(storage.local(task.payload["hashes"])))[rows[fresh]]
    _, first, which = np.unique(np.ascontiguousarray(hashes).view("S16"), return_index=True, return_inverse=True)
    in_order = np.argsort(first)  # the first of each text, in the order of the rows
    distinct = np.empty((len(first), vectors.shape[1]), dtype=np.float16)
    texts = read_table(storage.local(task.payload["chunks"]), ["text"]).column("text").combine_chunks()
    chosen = rows[fresh[first[in_order]]]
    spans = list(windows(len(chosen)))
    counts = {"tokens": 0, "truncated": 0}
    finished = [_read_window(storage, task, number) for number in range(len(spans))]
    missing = [span for span, window in zip(spans, finished, strict=True) if window is None]
    batches = _encode_windows(encoder, texts, chosen, missing, task)
    for number, (start, end) in enumerate(spans):
        part, own = finished[number] or _keep_window(storage, task, number, next(batches))
        distinct[in_order[start:end]] = part
        counts = {name: counts[name] + own[name] for name in counts}
    vectors[fresh] = distinct[which]
    return {**counts, "repeated": len(fresh) - len(first)}


def _encode_windows(
    encoder: Encoder, texts: pa.LargeStringArray, rows: Int64Array, spans: list[tuple[int, int]], task: Task
) -> Iterator[EncodedBatch]:
    inputs = (texts.take(rows[start:end]) for start, end in spans)
    results = iter(encoder.encode_windows(inputs))
    for start, _ in spans:
        try:
            yield next(results)
        except InputError as error:
            first = task.payload["first_chunk"] + int(rows[start])
            where = f"{error.where} that begins at chunk {first} ({task.payload['chunks']})"
            raise InputError(error.what, where=where, remedy=error.remedy) from error


def _window_path(task: Task, number: int, ending: str) -> str:
    return path_of("runs", run=task.payload["run"], file=f"windows/{task.id}-{number:05d}.{ending}")


def _keep_window(storage: Storage, task: Task, number: int, batch: EncodedBatch) -> tuple[Float16Array, dict[str, int]]:
    """Publish a window, its digest and counts last: without them it does not count as finished."""
    counts = {"tokens": int(batch.num_tokens_N.sum()), "truncated": batch.num_truncated}
    record = publish(
        storage, "runs", _window_path(task, number, "npy"), lambda local: save_array(local, batch.vectors_ND)
    )
    storage.write(_window_path(task, number, "json"), orjson.dumps({**counts, "xxh3": record.digest.xxh3.hex()}))
    return batch.vectors_ND, counts


def _read_window(storage: Storage, task: Task, number: int) -> tuple[Float16Array, dict[str, int]] | None:
    """A window that an earlier attempt finished, verified; None when it has to be computed."""
    if not storage.exists(_window_path(task, number, "json")):
        return None
    counts = orjson.loads(storage.read(_window_path(task, number, "json")))
    path = storage.local(_window_path(task, number, "npy"))
    if xxh3_file(path).hex() != counts.pop("xxh3"):
        return None
    return map_array(path), counts


def _publish(storage: Storage, task: Task, rows: RowSet, vectors: Float16Array) -> FileRecord:
    payload = task.payload
    space, query_set, first = payload["space"], payload["query_set"], payload["first_chunk"]
    if query_set:
        kind, name = "queries", query_set
        path = path_of("queries", name=query_set, task=task.id, file=f"vectors.{space}.npy")
    else:
        kind, name, path = "vectors", space, path_of("vectors", name=space, task=task.id)
    return publish(
        storage, kind, path, lambda local: save_array(local, vectors), name=name, first_chunk=first, rows=rows
    )
