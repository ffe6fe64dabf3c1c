"""Repair: restore what can be rebuilt or recomputed from the rest, and name what is lost.

What happens to a damaged file depends on its kind.

- Tokens, hashes and ids are rebuilt in place, and so are the files that say which rows of a neighbour table name a chunk. Their
  bytes are known, so every snapshot that names them is whole again.
- Block digests are computed again from the file that they describe.
- Vectors, index parts, codebooks, tables and bands are removed from the manifest, and the command that makes them is run.
- When documents or their text are lost, nothing in their shard can be read, so the whole shard is removed from the manifest. Its
  ids are not given again; whatever names them finds no chunk. This needs `accept_loss`.

Damaged bytes are never deleted: they are moved to `quarantine/`, which no snapshot and no collection reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.format.entries import DuplicatesEntry
from retrodb.format.kinds import KINDS, path_of
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.maintain.check.command import run_check
from retrodb.maintain.check.read_task import Damage
from retrodb.maintain.check.rebuild import REBUILDABLE, content_of, rebuild, table_file
from retrodb.maintain.check.recompute import RECOMPUTED, PendingWork, recompute, sources_of
from retrodb.stages.context import Context
from retrodb.stages.neighbours.block_join import JoinHardware
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.block_files import rebuild_blocks
from retrodb.store.digest import digest_file
from retrodb.store.storage import Storage
from retrodb.store.verify import damage
from retrodb.view.view import CHUNK_FILES, View
from retrodb.view.where import live_documents

QUARANTINE = "quarantine"

LOST = ("documents", "chunks", "reports", "rejects", "edits")
"""Kinds of files whose damage loses something for good. With documents or chunks, their whole shard is lost."""
_MAX_NAMED = 10_000  # lost documents: more names help nobody who reads them
_REPLACED_BY_COMMAND = ("codebooks", "neighbours", "naming", "joined")
"""Kinds whose command replaces the old files in its own commit: readers need the old ones until then."""


@dataclass(frozen=True)
class RepairPlan:
    """What a repair does with each damaged file."""

    snapshot: int  # that was checked
    rebuilt: tuple[str, ...]  # files that are rebuilt in place
    recomputed: tuple[str, ...]  # files that are removed from the manifest; a command recomputes them
    lost: tuple[str, ...]  # files that are removed for good: needs accept_loss
    lost_documents: tuple[str, ...]  # live documents that are lost with them, as source/id: the first 10,000
    num_more_lost_documents: int  # further ones, whose names 'retrodb sql' can list until the loss is accepted
    num_unnamed_lost_documents: int  # lost documents whose names cannot be read any more
    unrepairable: tuple[Damage, ...]  # files that a repair cannot restore, each with its remedy


@dataclass(frozen=True)
class DatabaseRepairResult:
    """What a repair did."""

    snapshot: int  # the newest one now
    plan: RepairPlan
    is_loss_accepted: bool  # if not, lost files stay where they are, and so do the files to recompute
    commands_run: tuple[str, ...] = ()  # that recomputed what was missing
    commands_to_run: tuple[str, ...] = ()  # that the user has to run
    dry_run: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the newest snapshot contains no damaged file any more."""
        plan = self.plan
        is_undone = plan.unrepairable or (plan.lost and not self.is_loss_accepted)
        return not (is_undone or (self.dry_run and (plan.rebuilt or plan.recomputed or plan.lost)))


def run_repair(
    context: Context,
    *,
    accept_loss: bool = False,
    device: str = "auto",
    dry_run: bool = False,
) -> DatabaseRepairResult:
    """Repair the newest snapshot.

    Args:
        accept_loss: whether to continue without the documents that cannot be restored.
        device: device of encoders and neighbour joins.

    Raises:
        DamagedFileError: a snapshot or a manifest segment is damaged, so its files are unknown.
        ConflictError: another command rewrote rows in the meantime.
        UsageError: too little memory; nothing is changed then.
    """
    hardware = JoinHardware(context.num_workers, context.memory_limit, device)
    plan = plan_repair(context)
    if dry_run:
        return DatabaseRepairResult(plan.snapshot, plan, accept_loss, dry_run=True)
    return execute_repair(context, plan, hardware, accept_loss=accept_loss)


def plan_repair(context: Context) -> RepairPlan:
    """Read every byte of the newest snapshot, and sort the damaged files by what can be done."""
    view = context.view()
    damaged = {damage.path: damage for damage in run_check(context, view, read_data=True).damaged}
    records = {record.path: record for record in view.manifest.all_files() if record.path in damaged}
    described = _described_by(view)
    shards = sorted(_lost_shards(records.values()))
    paths: dict[str, list[str]] = {"rebuilt": [], "recomputed": [], "lost": [], "unrepairable": []}
    for path in damaged:
        record = records.get(path, described.get(path))
        is_rebuilt = path in described and described[path].path not in damaged
        outcome = "rebuilt" if is_rebuilt else _outcome(view, record, shards, damaged) if record else "unrepairable"
        paths[outcome].append(path)
    documents = _LostDocuments.of(view, shards, damaged)
    return RepairPlan(
        snapshot=view.snapshot.number,
        rebuilt=tuple(paths["rebuilt"]),
        recomputed=tuple(paths["recomputed"]),
        lost=tuple(paths["lost"]),
        lost_documents=tuple(documents.names),
        num_more_lost_documents=documents.num_more,
        num_unnamed_lost_documents=documents.num_unnamed,
        unrepairable=tuple(damaged[path] for path in paths["unrepairable"]),
    )


def execute_repair(
    context: Context, plan: RepairPlan, hardware: JoinHardware, *, accept_loss: bool
) -> DatabaseRepairResult:
    """Execute a plan. When documents are lost and this is not accepted, only files that are rebuilt in place change."""
    view = context.view(plan.snapshot)
    result = DatabaseRepairResult(plan.snapshot, plan, accept_loss)
    records = {record.path: record for record in view.manifest.all_files()}
    described = _described_by(view)
    for path in plan.rebuilt:
        if path not in described:
            _rebuild_in_place(view, records[path])
    for path in plan.rebuilt:  # after the files that they describe
        if path in described:
            _rebuild_blocks(context.storage, described[path])
    if plan.lost and not accept_loss:
        return result
    removed = [records[path] for path in (*plan.recomputed, *plan.lost) if path not in described]
    for record in removed:
        _quarantine(context.storage, record.path)
    work = PendingWork.after_loss(view, removed, _lost_shards(removed)).with_earlier(PendingWork.load(context.storage))
    if work.kinds:
        work.save(context.storage)
    if dropped := [record for record in removed if record.kind not in _REPLACED_BY_COMMAND]:
        _drop(context, view, dropped)
    commands_run, commands_to_run = recompute(context, work, hardware)
    if work.kinds:
        context.storage.delete(path_of("repairing"))
    after = context.view()
    removed_paths = {path for record in removed for path in (record.path, record.blocks_path) if path}
    for path in removed_paths.difference(after.manifest.paths()):
        context.storage.delete(path)
    return replace(result, snapshot=after.snapshot.number, commands_run=commands_run, commands_to_run=commands_to_run)


def _described_by(view: View) -> dict[str, FileRecord]:
    """By path of block digests the file that they describe."""
    return {record.blocks_path: record for record in view.manifest.all_files() if record.blocks_path}


def _lost_shards(damaged: Iterable[FileRecord]) -> set[ChunkRange]:
    """The shards that cannot be read any more."""
    return {record.span for record in damaged if record.kind in ("documents", "chunks")}


def _outcome(view: View, record: FileRecord, lost_shards: Collection[ChunkRange], damaged: Collection[str]) -> str:
    """The field of the plan that names a damaged file."""
    content = content_of(record)
    if record.kind in CHUNK_FILES and record.span in lost_shards:
        return "lost"
    if content == "naming" and table_file(view, record).path in damaged:
        return "recomputed"
    if content in REBUILDABLE:
        return "rebuilt"
    if content in RECOMPUTED:
        return "recomputed"
    return "lost" if record.kind in LOST else "unrepairable"


@dataclass
class _LostDocuments:
    """The documents of lost shards, the first of them by name."""

    names: list[str]  # live documents as source/id, at most _MAX_NAMED
    num_more: int = 0  # live documents after these
    num_unnamed: int = 0  # whose names cannot be read

    @staticmethod
    def of(view: View, spans: Sequence[ChunkRange], damaged: Collection[str]) -> _LostDocuments:
        """The documents of some shards, one row group after another."""
        lost = _LostDocuments([])
        records = {record.span: record for record in view.manifest.files("documents")}
        for span in spans:
            if records[span].path in damaged:
                lost.num_unnamed += _num_documents(view, span)
                continue
            live, start = live_documents(view.chunks, records[span]), 0
            for group in iterate_row_groups(view.files.open(records[span]), ["source", "doc_id"]):
                table = group.filter(live[start : start + group.num_rows])
                start += group.num_rows
                named = table.slice(0, _MAX_NAMED - len(lost.names)).to_pylist()
                lost.names += [f"{row['source']}/{row['doc_id']}" for row in named]
                lost.num_more += table.num_rows - len(named)
        return lost


def _num_documents(view: View, span: ChunkRange) -> int:
    [shard] = view.shards.locate(np.array([span.first_chunk]))[0].tolist()
    return int(view.shards.num_documents[shard])


def _rebuild_in_place(view: View, record: FileRecord) -> None:
    """Write a file again in its place; the bytes must be those that the manifest promises."""
    _quarantine(view.storage, record.path)
    with view.storage.stage(record.path) as local:
        rebuild(view, record, local)
        if digest_file(local) != record.digest:
            raise damage(record, "the rebuilt file differs from the one that was written")


def _rebuild_blocks(storage: Storage, record: FileRecord) -> None:
    """Write the block digests of a file again, once the file is undamaged."""
    assert record.blocks_path is not None
    _quarantine(storage, record.blocks_path)
    rebuild_blocks(storage, record)


def _quarantine(storage: Storage, path: str) -> None:
    """Keep a copy of damaged bytes, if there are any."""
    if storage.exists(path):
        with storage.stage(f"{QUARANTINE}/{path}") as copy:
            shutil.copyfile(storage.local(path), copy)


@dataclass(frozen=True)
class _RepairRun:
    """Identity of a run."""

    drops: tuple[str, ...]
    snapshot: int


def _drop(context: Context, view: View, damaged: Sequence[FileRecord]) -> None:
    """Remove files from the manifest, lost shards whole."""
    dependents = _Dependents.of(view, damaged)
    paths = sorted({record.path for record in view.manifest.all_files() if record in damaged or dependents.has(record)})
    transaction = Transaction.open(
        context,
        view,
        "repair",
        conflict_keys.compact(),
        plan=_RepairRun(tuple(paths), view.snapshot.number),
        arguments={"files": len(paths), "shards": len(dependents.shards)},
    )
    transaction.drop_paths(paths)
    for span in sorted(dependents.shards):
        transaction.drop_shard(span.first_chunk)
    if dependents.has_duplicates:
        transaction.remove_entry(DuplicatesEntry, "near")
    transaction.commit()


@dataclass(frozen=True)
class _Dependents:
    """Undamaged files that have to be removed because of damaged ones."""

    shards: set[ChunkRange]  # lost shards
    sources: set[str]  # of the lost shards: their inputs have to be read again
    parts: set[str]  # folders of damaged index parts
    vectors: list[FileRecord]  # damaged: index parts over them cannot compute exact distances
    has_duplicates: bool  # pairs of near-duplicates are damaged: all documents have to be compared again

    @staticmethod
    def of(view: View, damaged: Sequence[FileRecord]) -> _Dependents:
        """What depends on damaged files."""
        shards = _lost_shards(damaged)
        return _Dependents(
            shards=shards,
            sources=sources_of(view, shards),
            parts={record.path.rpartition("/")[0] for record in damaged if record.kind == "parts"},
            vectors=[record for record in damaged if record.kind == "vectors"],
            has_duplicates=any(record.kind == "duplicates" for record in damaged),
        )

    def has(self, record: FileRecord) -> bool:
        """Whether a file has to be removed."""
        if record.kind == "inputs":
            return record.name in self.sources
        if record.kind == "duplicates" or (record.kind == "bands" and self.has_duplicates):
            return self.has_duplicates
        if record.kind == "parts" and self._has_part(record):
            return True
        is_of_chunks = KINDS[record.kind].covers == "chunks"
        return is_of_chunks and any(
            span.first_chunk <= record.first_chunk and record.span.end <= span.end for span in self.shards
        )

    def _has_part(self, record: FileRecord) -> bool:
        return record.path.rpartition("/")[0] in self.parts or any(
            vectors.name == record.name
            and vectors.first_chunk < record.span.end
            and record.first_chunk < vectors.span.end
            for vectors in self.vectors
        )
