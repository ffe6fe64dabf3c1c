"""A database that grows by copies of its shards: their files are linked under new names and ids, and committed as any others.

The copies cost names and records, no bytes. Every document of a copy has the text and the id of the original, and copies have
no tombstones and no neighbours.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from retrodb.format.kinds import KINDS
from retrodb.format.records import ChunkRange, CoveredRecord, FileRecord, ShardRecord
from retrodb.format.settings import parse_settings
from retrodb.format.snapshot import Snapshot
from retrodb.stages.covered_counting import changed_covered, counts_of_task, covered_counts, run_covered
from retrodb.store.chunk_ids import NewShard
from retrodb.store.commit import Change, commit, preview
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.digest import identity
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage
from retrodb.view.shard_counts import changed_counts, shard_counts
from retrodb.view.view import CHUNK_FILES, View

_TASK = re.compile(r"[0-9a-f]{32,64}")


def replicate(storage: LocalStorage, copies: int) -> Snapshot:
    """Add `copies` copies of all shards and of what covers their chunks: vectors, index parts, scores, bands.

    The ids of the database must be dense, as they are before a compaction.
    """
    head = read_head(storage)
    manifest = load_manifest(storage, head)
    shards = [manifest.shards.record(index) for index in range(len(manifest.shards))]
    assert sum(shard.num_chunks for shard in shards) == head.next_chunk
    files = [file for file in manifest.all_files() if KINDS[file.kind].covers == "chunks"]
    shard_files = [file for file in files if file.kind in CHUNK_FILES]
    covering = [file for file in files if file.kind not in CHUNK_FILES]
    change = Change(
        transaction=identity("replicate", head.number, copies),
        command="replicate",
        arguments={"copies": copies},
        clock=head.clock,
        conflict_keys=ConflictKeys(frozenset(), frozenset()),
        shards=[_copy_of_shard(storage, s, shard_files, copy) for copy in range(1, copies + 1) for s in shards],
        files=[
            _link(storage, file, copy).at(file.first_chunk + copy * head.next_chunk)
            for copy in range(1, copies + 1)
            for file in covering
        ],
    )
    return commit(storage, head, change, partial(_counted, storage))


def _counted(storage: LocalStorage, head: Snapshot, change: Change) -> Change:
    """The change with the counts of its shards, as a transaction adds them."""
    snapshot, records = preview(head, change)
    view = View(storage, parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml"), snapshot, records)
    spans = [record.span for record in records if isinstance(record, ShardRecord)]
    counts = [(span, shard_counts(view.chunks, view.chunks.file("documents", *span))) for span in spans]
    changed = [record for span, of_shard in counts for record in changed_counts(view.manifest, span, of_shard)]
    return replace(change, shard_counts=[*changed, *_covered(storage, view, spans)])


def _covered(storage: LocalStorage, view: View, spans: Sequence[ChunkRange]) -> list[CoveredRecord]:
    counts, tasks = covered_counts(view, spans)
    for task in tasks:
        counts.update(counts_of_task(task, run_covered(storage, task, "").result))
    return [record for span, covered in counts.items() for record in changed_covered(view, span, covered)]


def _copy_of_shard(storage: LocalStorage, shard: ShardRecord, files: Sequence[FileRecord], copy: int) -> NewShard:
    """The shard without ids, which the commit gives."""
    linked = tuple(_link(storage, file, copy) for file in files if file.first_chunk == shard.first_chunk)
    return NewShard(replace(shard, task=_renamed(shard.task, copy), first_chunk=-1), linked)


def _link(storage: LocalStorage, file: FileRecord, copy: int) -> FileRecord:
    path = _renamed(file.path, copy)
    target = storage.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(storage.root / file.path, target)
    return replace(file, path=path)


def _renamed(path: str, copy: int) -> str:
    """The path with another task's id."""
    return _TASK.sub(lambda task: hashlib.sha256(f"{task[0]} {copy}".encode()).hexdigest()[: len(task[0])], path)
