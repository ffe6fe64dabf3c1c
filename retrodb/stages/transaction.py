"""Transaction: one change of the database, from its run to its commit.

A command plans on a view and changes nothing. Then it opens a transaction, runs its tasks, publishes its small files, says
which files they replace, and commits once. Interrupted anywhere, the same command run again continues, because the run's
identity follows from the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from retrodb.engine.run import Engine, Run, open_run, refuse_cancelled
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.format.entries import Entry, entry_key
from retrodb.format.json_codec import JsonValue, to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.records import (
    OP_DROP_FILE,
    OP_DROP_SHARD,
    ChunkRange,
    DropRecord,
    FileRecord,
    ScreenedRecord,
    ShardRecord,
)
from retrodb.format.rows import RowSet
from retrodb.format.snapshot import Snapshot
from retrodb.stages.context import Context
from retrodb.stages.covered_counting import COVERING_KINDS, count_covered, covers_chunks
from retrodb.stages.shard_counting import count_changed_shards
from retrodb.store import publish
from retrodb.store.chunk_ids import NewShard, give_ids
from retrodb.store.commit import Change, commit, preview
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.digest import identity
from retrodb.view.tombstones import Tombstone, write_ordered_tombstones, write_tombstones
from retrodb.view.view import SELF, View, tombstones_name


@dataclass
class Transaction:
    """A change that is being made. What is collected here becomes visible in one commit, or not at all."""

    context: Context
    view: View  # that the command planned on
    run: Run
    command: str  # for the history
    conflict_keys: ConflictKeys  # what the plan read, and what it changes in addition to entries
    arguments: dict[str, JsonValue]  # resolved parameters, for the history
    step_id: str | None = None  # identity of this commit, where its run makes several
    shards: list[NewShard] = field(default_factory=list)
    files: list[FileRecord] = field(default_factory=list)
    screened: list[ScreenedRecord] = field(default_factory=list)
    changed_ranges: list[ChunkRange] = field(
        default_factory=list
    )  # whose tombstones change: their shards are counted again
    drops: list[DropRecord] = field(default_factory=list)
    entries: dict[str, Entry | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # what the command reports
    manifest_of: Snapshot | None = None  # a restore lays its records over this snapshot's manifest

    @classmethod
    def open(
        cls,
        context: Context,
        view: View,
        command: str,
        conflict_keys: ConflictKeys,
        *,
        plan: object,
        arguments: object = None,
        run_command: str | None = None,
    ) -> Transaction:
        """Open the run of a plan, new or interrupted, and begin its change.

        Args:
            plan: a dataclass or plain values that say all that the run will do, without any time in them.
            arguments: a dataclass or a mapping of plain values, for the history.
            run_command: the name of the run, where it is not the command's.
        """
        run = open_run(context.storage, run_command or command, plan, context.clock)
        return cls.of_run(context, view, run, command, conflict_keys, arguments=arguments)

    @classmethod
    def of_run(
        cls,
        context: Context,
        view: View,
        run: Run,
        command: str,
        conflict_keys: ConflictKeys,
        *,
        arguments: object = None,
        step: str | None = None,
    ) -> Transaction:
        """The change of a run that is open already.

        Args:
            step: names this commit among several of one run. The run stays open, and a step may be committed again on
                another snapshot. None is the only commit, or the last.
        """
        step_id = None if step is None else identity(run.id, step, view.snapshot.number)
        plain = to_plain_object({} if arguments is None else arguments)
        return cls(context, view, run, command, conflict_keys, plain, step_id)

    def run_tasks(
        self,
        tasks: Sequence[Task[P, R]],
        function: TaskFunction[P, R],
        *,
        engine: Engine | None = None,
        isolated: bool = False,
        extra_bytes: int = 0,
        unit: str = "",
        rate_of: str = "",
    ) -> list[TaskRecord[R]]:
        """Run the tasks that are not finished; their files are not added, because some commands place them first.

        Args:
            engine: another one than the context's. The rest is as in `Engine.run`.
        """
        return (engine or self.context.engine).run(
            self.run,
            tasks,
            function,
            self.context.progress,
            isolated=isolated,
            extra_bytes=extra_bytes,
            unit=unit,
            rate_of=rate_of,
        )

    def publish(
        self,
        kind: str,
        path: str,
        write: Callable[[Path], None],
        *,
        name: str = "",
        first_chunk: int = -1,
        rows: RowSet | None = None,
    ) -> FileRecord:
        """Write and publish a small file, and add it to the change."""
        record = publish.publish(self.context.storage, kind, path, write, name=name, first_chunk=first_chunk, rows=rows)
        self.files.append(record)
        return record

    def add_files(self, records: Iterable[TaskRecord[R]]) -> None:
        """Add the files of finished tasks."""
        self.files.extend(file for record in records for file in record.files)

    def add_tombstones(
        self,
        tombstones: Sequence[Tombstone],
        *,
        query_set: str = SELF,
        task: str | None = None,
    ) -> None:
        """Publish a tombstones file, unless there are no tombstones.

        Args:
            query_set: that the rows belong to.
            task: id in the file's name, where the run's would not be unique.
        """
        if query_set == SELF:
            self.changed_ranges += [ChunkRange(stone.first_chunk, stone.num_chunks) for stone in tombstones]
        if tombstones:
            name = tombstones_name(query_set)
            path = path_of("tombstones", task=task or identity(self.run.id, "tombstones", name))
            self.publish("tombstones", path, partial(write_tombstones, tombstones=tombstones), name=name)

    def write_tombstones_again(self, ordered: Iterable[Tombstone], *, query_set: str) -> None:
        """Publish a file of tombstones that say what others say already: one after another, in their order. None is no file."""
        others, name = iter(ordered), tombstones_name(query_set)
        if (first := next(others, None)) is not None:
            path = path_of("tombstones", task=identity(self.run.id, "tombstones", name))
            write = partial(write_ordered_tombstones, ordered=chain([first], others))
            self.publish("tombstones", path, write, name=name)

    def drop_files(self, records: Iterable[FileRecord]) -> None:
        """Take files out of the database; older snapshots still name them."""
        self.drop_paths(record.path for record in records)

    def drop_paths(self, paths: Iterable[str]) -> None:
        """Take files out of the database by their paths."""
        self.drops.extend(DropRecord(OP_DROP_FILE, path) for path in paths)

    def drop_shard(self, first_chunk: int) -> None:
        """Take a shard out of the database."""
        self.drops.append(DropRecord(OP_DROP_SHARD, first_chunk=first_chunk))

    def set_entry(self, name: str, entry: Entry) -> None:
        """Set an entry of the snapshot."""
        self.entries[entry_key(type(entry), name)] = entry

    def remove_entry(self, kind: type[Entry], name: str) -> None:
        """Take an entry out of the snapshot."""
        self.entries[entry_key(kind, name)] = None

    def commit(self, complete: CompleteTransaction | None = None) -> Snapshot:
        """Make the change visible, on top of whatever was committed meanwhile. Tasks count the shards that it changes.

        Args:
            complete: adds what follows from the chunk ids of the new shards. Ids are known only for a given head, so it is
                called for every head that the commit is tried on, with a copy of this transaction whose view shows
                this head and the change.

        Raises:
            ConflictError: when another commit changed what the plan had read, or somebody cancelled the run.
        """
        refuse_cancelled(self.run)

        def completed(head: Snapshot, change: Change) -> Change:
            copy = self._of_change(change, self._staged(head, change))
            if complete is not None:
                complete(copy)
                change = copy._change()
                copy.view = self._staged(head, change)
            changed = copy._changed_shards(head)
            counts = count_changed_shards(self.context, self.run, copy.view, changed)
            covered = count_covered(self.context, self.run, copy.view, [*changed, *copy._covered_ranges(self.view)])
            return replace(change, shard_counts=[*counts, *covered])

        is_counted = self.shards or self.changed_ranges or self._covered_ranges(self.view)
        needs_ids = complete is not None or is_counted
        return commit(self.context.storage, self.view.snapshot, self._change(), completed if needs_ids else None)

    def _staged(self, head: Snapshot, change: Change) -> View:
        """The database as it will be with the change on top of a head."""
        snapshot, records = preview(head, change)
        return View(self.context.storage, self.view.settings, snapshot, records)

    def _changed_shards(self, head: Snapshot) -> list[ChunkRange]:
        """The ranges of the shards that are new, were compacted, or have other tombstones than before."""
        records, _ = give_ids(self.shards, head.next_chunk)
        return [record.span for record in records if isinstance(record, ShardRecord)] + self.changed_ranges

    def _covered_ranges(self, before: View) -> list[ChunkRange]:
        """The ranges of the files that are new or dropped, and that hold rows of chunks.

        Args:
            before: the change; it has the files that are dropped.
        """
        dropped = {drop.path for drop in self.drops if drop.path.startswith(COVERING_KINDS)}
        records = [file for kind in COVERING_KINDS if dropped for file in before.manifest.files(kind)]
        files = [*self.files, *(record for record in records if record.path in dropped)]
        return list(dict.fromkeys(file.span for file in files if covers_chunks(file)))

    def _of_change(self, change: Change, view: View) -> Transaction:
        """A copy of this transaction that holds a rebased change."""
        return replace(
            self,
            view=view,
            shards=list(change.shards),
            files=list(change.files),
            screened=list(change.screened),
            changed_ranges=list(self.changed_ranges),
            drops=list(change.drops),
            entries=dict(change.entries),
            counts=dict(change.counts),
        )

    def _change(self) -> Change:
        return Change(
            transaction=self.step_id or self.run.id,
            command=self.command,
            arguments=self.arguments,
            clock=self.run.clock,
            conflict_keys=self.conflict_keys,
            shards=self.shards,
            files=self.files,
            screened=self.screened,
            drops=self.drops,
            entries=self.entries,
            counts=self.counts,
            manifest_of=self.manifest_of,
        )


CompleteTransaction: TypeAlias = Callable[[Transaction], None]
"""Adds what follows from the chunk ids of new shards, see `Transaction.commit`."""
