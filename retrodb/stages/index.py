"""Stage index: one codebook a space, and an immutable part for every file of vectors.

Adding costs what is new and nothing else; a new codebook is trained only for a space that has none, or when asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from retrodb.ann.codebook import Codebook, choose_factory, load_codebook, num_lists_of, sample_size, train
from retrodb.ann.metric import Metric
from retrodb.ann.part import PART_FILES, build_part
from retrodb.config import IndexParams, to_mapping
from retrodb.engine.run import Run, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import MissingStep, UsageError
from retrodb.format.arrays import AnyArray, map_array
from retrodb.format.kinds import path_of
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.live_parts import open_codebook, parts_of
from retrodb.store import marks
from retrodb.store.commit import Change, commit
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.view import View

STAGE_VERSION = 1


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


def run_index(
    context: Context, params: IndexParams, *, space: str | None = None, retrain: bool = False, dry_run: bool = False
) -> IndexResult:
    """Index what is embedded and not yet indexed.

    Raises:
        MissingStep: when the space has no vectors.
        ConfigError: for a factory that FAISS does not know.
    """
    view = context.view()
    name = space or view.snapshot.default_space
    vectors = view.manifest.files("vectors", name)
    if not vectors:
        raise MissingStep(f"space '{name}' has no vectors", remedy="Run 'retrodb embed' first.")
    entry = view.snapshot.entry("index", name)
    is_new = retrain or entry is None
    if not is_new and params != IndexParams() and to_mapping(params) != entry["params"]:
        raise UsageError(
            f"space '{name}' has a codebook already ({entry['factory']}) and these options ask for another",
            remedy="Add '--retrain' to make a new one and index everything again, or leave the options out.",
        )
    old = parts_of(view, name)
    indexed = set() if is_new else {(p.span.first_chunk, p.span.rows) for p in old}
    missing = [record for record in vectors if (record.first_chunk, record.rows) not in indexed]
    count = sum(record.num_rows for record in missing)
    if dry_run or not missing:
        entry = entry or {"factory": _factory(view, name, params), "lists": 0, "note": ""}
        kept = 0 if is_new else len(old)
        return _result(view.snapshot.number, name, entry, is_new, count, kept + len(missing), dry_run)
    plan = {
        "version": STAGE_VERSION,
        "space": view.snapshot.entry("space", name)["fingerprint"],
        "params": to_mapping(params),
        "codebook": None if is_new else entry["codebook"],
        "previous": entry["codebook"] if entry else None,
        "vectors": [[record.path, record.digest.sha256.hex()] for record in missing],
    }
    run = open_run(context.storage, "index", plan, context.clock)
    codebook = _trained(view, name, params) if is_new else open_codebook(view, name)
    files: list[FileRecord] = []
    if is_new:
        files.append(_publish_codebook(context.storage, name, codebook))
        entry = _entry(codebook, params, _factory(view, name, params))
    path = path_of("codebooks", name=name, digest=codebook.digest)
    records = context.engine.run(run, [_task(view, name, path, r) for r in missing], run_index_task, context.progress)
    dropped = [record.path for part in old for record in part.records] if is_new else []
    dropped += [record.path for record in view.manifest.files("codebooks", name) if is_new and record.path != path]
    snapshot = commit(
        context.storage, view.snapshot, _change(run, name, params, records, files, dropped, entry, is_new)
    )
    kept = 0 if is_new else len(old)
    return _result(snapshot.number, name, entry, is_new, count, kept + len(missing), False)


def run_index_task(storage: Storage, task: Task, clock: str) -> TaskRecord:
    """Build the part of one file of vectors."""
    del clock
    payload = task.payload
    codebook = _load_codebook(storage.url, payload["codebook"])
    vectors = map_array(storage.local(payload["vectors"]))
    rows = RowSet(payload["num_chunks"], None if payload["rows"] is None else bytes.fromhex(payload["rows"]))
    files = []
    with TemporaryDirectory(dir=storage.local(payload["vectors"]).parent) as folder:
        build_part(vectors, codebook, Path(folder))
        for file in PART_FILES:
            path = path_of("parts", name=payload["space"], task=task.id, file=file)
            move = partial(_move, Path(folder) / file)
            first = payload["first_chunk"]
            files.append(publish(storage, "parts", path, move, name=payload["space"], first_chunk=first, rows=rows))
    return TaskRecord(task.id, tuple(files), {}, {"vectors": len(vectors)})


def _move(source: Path, target: Path) -> None:
    source.replace(target)


@lru_cache(maxsize=2)
def _load_codebook(url: str, path: str) -> Codebook:
    from retrodb.store.storage import open_storage

    return load_codebook(open_storage(url).read(path))


def _factory(view: View, space: str, params: IndexParams) -> str:
    if params.factory != "auto":
        return params.factory
    entry = view.snapshot.entry("space", space)
    num_vectors = sum(record.num_rows for record in view.manifest.files("vectors", space))
    return choose_factory(
        num_vectors, entry["dimension"], params.memory_bytes, params.bytes_per_vector, entry["metric"]
    )


def _trained(view: View, space: str, params: IndexParams) -> Codebook:
    factory = _factory(view, space, params)
    size = params.train_sample or sample_size(factory)
    sample = _sample(view, space, max(size, 1), params.seed)
    metric: Metric = view.snapshot.entry("space", space)["metric"]
    return train(sample, factory, params.seed, metric)


def _sample(view: View, space: str, size: int, seed: int) -> AnyArray:
    """A seeded random sample (S, D) over the live vectors of all shards, never the first ones."""
    live = []
    for record in view.manifest.files("vectors", space):
        ids = record.first_chunk + record.row_set.present
        live.append(ids[view.chunks.is_live(ids)])
    ids = np.concatenate(live)
    if not len(ids):
        raise MissingStep(
            f"all chunks of space '{space}' are deleted", remedy="Ingest more, or undelete what is needed."
        )
    chosen = np.random.default_rng(seed).choice(len(ids), size=min(size, len(ids)), replace=False)
    return view.vectors(space, ids[np.sort(chosen)])


def _publish_codebook(storage: Storage, space: str, codebook: Codebook) -> FileRecord:
    path = path_of("codebooks", name=space, digest=codebook.digest)
    data = codebook.serialize()

    def write(local: Path) -> None:
        local.write_bytes(data)

    return publish(storage, "codebooks", path, write, name=space)


def _entry(codebook: Codebook, params: IndexParams, factory: str) -> dict[str, Any]:
    used = "Flat" if codebook.num_lists == 1 and num_lists_of(factory) > 1 else factory
    return {
        "codebook": codebook.digest,
        "factory": used,
        "lists": codebook.num_lists,
        "note": codebook.note,
        "params": to_mapping(params),
    }


def _task(view: View, space: str, codebook: str, vectors: FileRecord) -> Task:
    view.files.open(vectors)
    payload = {
        "space": space,
        "codebook": codebook,
        "vectors": vectors.path,
        "first_chunk": vectors.first_chunk,
        "num_chunks": vectors.num_chunks,
        "rows": None if vectors.rows is None else vectors.rows.hex(),
    }
    return make_task("index", STAGE_VERSION, payload, [vectors.digest.sha256.hex()], vectors.num_rows)


def _change(
    run: Run,
    space: str,
    params: IndexParams,
    records: Sequence[TaskRecord],
    files: list[FileRecord],
    dropped: list[str],
    entry: dict[str, Any],
    is_new: bool,
) -> Change:
    return Change(
        transaction=run.id,
        command="index",
        arguments={"space": space, **to_mapping(params)},
        clock=run.clock,
        marks=marks.index(space),
        files=[*files, *(file for record in records for file in record.files)],
        drops=[DropRecord(OP_DROP_FILE, path) for path in dropped],
        entries={f"index/{space}": entry} if is_new else {},
        counts={"vectors": sum(record.counts["vectors"] for record in records)},
    )


def _result(
    snapshot: int, space: str, entry: dict[str, Any], trained: bool, vectors: int, parts: int, dry_run: bool
) -> IndexResult:
    return IndexResult(
        snapshot, space, entry["factory"], entry["lists"], trained, vectors, parts, entry["note"], dry_run
    )
