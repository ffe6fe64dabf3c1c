"""Stage index: one codebook a space, and an immutable part for what each file of vectors has new.

Adding costs what is new and nothing else; a new codebook is trained only for a space that has none, or when asked. Parts are
merged afterwards, in a commit of their own (see `merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from retrodb.ann.codebook import Codebook, choose_factory, least_sample, load_codebook, sample_size, train
from retrodb.config import IndexParams, to_mapping
from retrodb.engine.run import open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import ConfigError, MissingStep, UsageError
from retrodb.format.arrays import AnyArray, Int64Array, map_array
from retrodb.format.entries import Entry, IndexEntry, Metric, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.index.codebook_file import index_entry, publish_codebook
from retrodb.stages.index.drift import choose_canaries, drift_entry, reasons_to_retrain
from retrodb.stages.index.live_parts import missing_rows, open_codebook, parts_of
from retrodb.stages.index.merge import run_merges
from retrodb.stages.index.part_task import publish_part
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.storage import Storage, open_storage
from retrodb.view.view import View

STAGE_VERSION = 2


@dataclass(frozen=True)
class IndexResult:
    """What an index run did."""

    snapshot: int
    space: str
    factory: str  # of the codebook that is in use now
    lists: int  # inverted lists; 1 for Flat
    trained: bool  # whether this run trained it
    vectors: int  # added by this run
    parts: int  # of the space now
    note: str  # what training decided otherwise than asked
    dry_run: bool = False
    merged_parts: int = 0  # that became fewer
    retrain: str = ""  # why `--retrain` would pay


def run_index(
    context: Context, params: IndexParams, *, space: str | None = None, retrain: bool = False, dry_run: bool = False
) -> IndexResult:
    """Index what is embedded and not yet indexed, then merge parts.

    Raises:
        MissingStep: when the space has no vectors.
        ConfigError: for a factory that FAISS does not know, or a sample too small for it.
        UsageError: for options of another codebook than the space has.
    """
    view = context.view()
    name = space or view.snapshot.default_space
    entry = view.snapshot.entry(IndexEntry, name)
    is_new = retrain or entry is None
    _check(view, name, params, entry, is_new)
    old = [] if is_new else parts_of(view, name)
    missing = missing_rows(view, name, old)
    result = IndexResult(
        snapshot=view.snapshot.number,
        space=name,
        factory=entry.factory if entry and not is_new else _factory(view, name, params),
        lists=entry.lists if entry and not is_new else 0,
        trained=is_new,
        vectors=sum(len(rows) for _, rows in missing),
        parts=len(old) + len(missing),
        note=entry.note if entry and not is_new else "",
        dry_run=dry_run,
    )
    if not dry_run and (missing or is_new):
        result = _add(context, view, params, entry, missing, result)
    memory_bytes = params.memory_bytes if entry is None else entry.params.memory_bytes
    merges = run_merges(context, name, memory_bytes, dry_run=dry_run)
    number, parts = (result.snapshot, result.parts) if dry_run else (merges.snapshot, merges.parts)
    reasons = ", ".join(reasons_to_retrain(context.view(), name))
    return replace(result, snapshot=number, parts=parts, merged_parts=merges.merged, retrain=reasons)


def _check(view: View, space: str, params: IndexParams, entry: IndexEntry | None, is_new: bool) -> None:
    own = view.snapshot.entry(SpaceEntry, space)
    if own is None or not (view.manifest.files("vectors", space) or entry):
        raise MissingStep(f"space '{space}' has no vectors", remedy="Run 'retrodb embed' first.")
    if is_new and not view.keeps_vectors(space):
        raise UsageError(
            f"space '{space}' was embedded without keeping vectors, so there is nothing to train a new index on",
            remedy="Embed into a new space, and drop this one.",
        )
    if entry and not is_new and params not in (IndexParams(), entry.params):
        raise UsageError(
            f"space '{space}' has a codebook already ({entry.factory}) and these options ask for another",
            remedy="Add '--retrain' to make a new one and index everything again, or leave the options out.",
        )


def _add(
    context: Context,
    view: View,
    params: IndexParams,
    entry: IndexEntry | None,
    missing: Sequence[tuple[FileRecord, RowSet]],
    result: IndexResult,
) -> IndexResult:
    """Train if there is no codebook, build the parts, and commit both with the drift they show."""
    name, is_new = result.space, result.trained
    own = view.snapshot.existing(SpaceEntry, name)
    plan = {
        "version": STAGE_VERSION,
        "space": own.fingerprint,
        "params": to_mapping(params),
        "codebook": entry.codebook if entry and not is_new else None,
        "previous": entry.codebook if entry else None,
        "vectors": [[record.path, record.digest.sha256.hex(), _hex(rows)] for record, rows in missing],
    }
    run = open_run(context.storage, "index", plan, context.clock)
    files: list[FileRecord] = []
    entries: dict[str, Entry | None] = {}
    canaries = None
    if is_new:
        ids = np.concatenate([record.first_chunk + rows.present for record, rows in missing] or [np.empty(0, np.int64)])
        codebook = _trained(view, name, params, ids, context.num_workers)
        canaries = choose_canaries(ids if codebook.num_lists > 1 else ids[:0], params.seed)
        files.append(publish_codebook(context.storage, name, codebook))
        entry = replace(index_entry(codebook, params, result.factory), fingerprint=own.fingerprint)
        entries[f"index/{name}"] = entry
    else:
        codebook = open_codebook(view, name)
    path = path_of("codebooks", name=name, digest=codebook.digest)
    tasks = [_task(view, name, path, record, rows) for record, rows in missing]
    function = partial(run_index_task, threads=context.threads_for(len(tasks)))
    records = context.engine.run(run, tasks, function, context.progress)
    entries[f"drift/{name}"] = drift_entry(view, name, codebook, records, canaries)
    replaced = [*view.manifest.files("parts", name), *view.manifest.files("codebooks", name)] if is_new else []
    change = Change(
        transaction=run.id,
        command="index",
        arguments={"space": name, **to_mapping(params)},
        clock=run.clock,
        conflict_keys=conflict_keys.index(name),
        files=[*files, *(file for record in records for file in record.files)],
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in replaced],
        entries=entries,
        counts={"vectors": result.vectors},
    )
    number = commit(context.storage, view.snapshot, change).number
    assert entry is not None, "trained, or stored"
    return replace(result, snapshot=number, factory=entry.factory, lists=entry.lists, note=entry.note)


def _task(view: View, space: str, codebook: str, vectors: FileRecord, rows: RowSet) -> Task[Any, Any]:
    view.files.open(vectors)
    payload = {
        "space": space,
        "codebook": codebook,
        "vectors": vectors.path,
        "first_chunk": vectors.first_chunk,
        "num_chunks": vectors.num_chunks,
        "stored": _hex(vectors.row_set),
        "rows": _hex(rows),
    }
    return make_task("index", STAGE_VERSION, payload, [vectors.digest.sha256.hex()], len(rows))


def run_index_task(storage: Storage, task: Task[Any, Any], clock: str, *, threads: int = 1) -> TaskRecord[Any]:
    """Build the part of some rows of one file of vectors; the threads change no byte of it."""
    del clock
    payload = task.payload
    codebook = _load_codebook(storage.url, payload["codebook"])
    vectors = map_array(storage.local(payload["vectors"]))
    stored, rows = (_row_set(payload["num_chunks"], payload[name]) for name in ("stored", "rows"))
    chosen = vectors if rows == stored else _Rows(vectors, stored.rank(rows.present))
    files = publish_part(
        storage, payload["space"], task.id, chosen, codebook, payload["first_chunk"], rows, threads=threads
    )
    return TaskRecord(task.id, files, {}, {"vectors": len(rows)})


class _Rows:
    """Some rows of a mapped array, read when they are asked for."""

    def __init__(self, array: AnyArray, positions: Int64Array) -> None:
        self._array, self._positions = array, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, rows: slice | Int64Array) -> AnyArray:
        block: AnyArray = self._array[self._positions[rows]]
        return block


def _hex(rows: RowSet) -> str | None:
    return None if rows.bitmap is None else rows.bitmap.hex()


def _row_set(num_rows: int, bitmap: str | None) -> RowSet:
    return RowSet(num_rows, None if bitmap is None else bytes.fromhex(bitmap))


@lru_cache(maxsize=2)
def _load_codebook(url: str, path: str) -> Codebook:
    return load_codebook(open_storage(url).read(path))


def _factory(view: View, space: str, params: IndexParams) -> str:
    if params.factory != "auto":
        return params.factory
    entry = view.snapshot.existing(SpaceEntry, space)
    num_vectors = sum(record.num_rows for record in view.manifest.files("vectors", space))
    return choose_factory(num_vectors, entry.dimension, params.memory_bytes, params.bytes_per_vector, entry.metric)


def _trained(view: View, space: str, params: IndexParams, ids: Int64Array, threads: int) -> Codebook:
    """A codebook trained on a seeded random sample of these ids: of all shards, never the first ones."""
    if not len(ids):
        raise MissingStep(
            f"all chunks of space '{space}' are deleted", remedy="Ingest more, or undelete what is needed."
        )
    factory = _factory(view, space, params)
    least = least_sample(factory)
    if params.train_sample is not None and params.train_sample < least <= len(ids):
        raise ConfigError(
            f"{factory} needs at least {least} training vectors, and --train-sample allows {params.train_sample}",
            remedy="Ask for fewer lists, or leave --train-sample out.",
        )
    size = max(1, params.train_sample or sample_size(factory))
    chosen = np.random.default_rng(params.seed).choice(len(ids), size=min(size, len(ids)), replace=False)
    metric: Metric = view.snapshot.existing(SpaceEntry, space).metric
    return train(view.vectors(space, ids[np.sort(chosen)]), factory, params.seed, metric, threads)
