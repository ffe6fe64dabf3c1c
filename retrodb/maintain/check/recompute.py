"""What has to be recomputed after files left the manifest, and the commands that do it.

`repair.json` stores it until they are done, so that the next repair continues one that was interrupted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.config import NearDuplicatesParams
from retrodb.format.entries import DuplicatesEntry, IndexEntry, SpaceEntry, TableEntry
from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.maintain.check.rebuild import content_of
from retrodb.stages.context import Context
from retrodb.stages.dedup.near_duplicates import run_near_duplicates
from retrodb.stages.embed.command import run_embed
from retrodb.stages.embed.space_encoder import EncoderHardware
from retrodb.stages.index.command import run_index
from retrodb.stages.neighbours.block_join import JoinHardware, chosen_device
from retrodb.stages.neighbours.command import execute_neighbours, plan_neighbours
from retrodb.store.storage import Storage
from retrodb.view.view import View

RECOMPUTED = (
    "vectors", "parts", "codebooks", "neighbours", "naming", "joined", "bands", "duplicates", "attributes", "inputs",
)  # fmt: skip
"""Kinds of files that leave the manifest when they are damaged: a command recomputes them, or works without them."""


@dataclass(frozen=True)
class PendingWork:
    """`repair.json`: what commands have to recompute."""

    kinds: Mapping[str, Sequence[str]]  # kind of file -> spaces, tables, taggers, ... whose files left the manifest
    sources: Sequence[str]  # whose lost shards have to be ingested again
    near: NearDuplicatesParams | None  # parameters of the search for near-duplicates

    @staticmethod
    def after_loss(view: View, removed: Sequence[FileRecord], lost_shards: Iterable[ChunkRange]) -> PendingWork:
        """What the removal of files makes necessary."""
        kinds: dict[str, set[str]] = defaultdict(set)
        for record in removed:
            content = content_of(record)
            kinds[content if content in RECOMPUTED else record.kind].add(record.name)
        near = view.snapshot.entry(DuplicatesEntry, "near")
        return PendingWork(
            kinds={kind: sorted(names) for kind, names in sorted(kinds.items())},
            sources=sorted(sources_of(view, lost_shards)),
            near=near.params if near else None,
        )

    @staticmethod
    def load(storage: Storage) -> PendingWork | None:
        """What an interrupted repair has not done; None after one that ended.

        Raises:
            DamagedFileError: `repair.json` cannot be read.
        """
        path = path_of("repairing")
        remedy = "Delete this file, and run 'embed', 'index', 'dedup --near-duplicates' and 'neighbours' yourself."
        return from_json(PendingWork, storage.read(path), where=path, remedy=remedy) if storage.exists(path) else None

    def save(self, storage: Storage) -> None:
        """Store it until the commands have run."""
        storage.write(path_of("repairing"), to_json(self))

    def with_earlier(self, earlier: PendingWork | None) -> PendingWork:
        """This work together with that of an interrupted repair."""
        if earlier is None:
            return self
        kinds = {
            kind: sorted({*self.kinds.get(kind, ()), *earlier.kinds.get(kind, ())})
            for kind in sorted({*self.kinds, *earlier.kinds})
        }
        return PendingWork(kinds, sorted({*self.sources, *earlier.sources}), self.near or earlier.near)


def recompute(context: Context, work: PendingWork, hardware: JoinHardware) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Run the commands that recompute what is missing. Gives these, and the commands that the user has to run."""
    names, snapshot = {kind: set(work.kinds.get(kind, ())) for kind in RECOMPUTED}, context.view().snapshot
    commands_run = []
    for space in snapshot.names(SpaceEntry):
        if space in names["vectors"] | names["parts"] or "queries" in work.kinds:
            run_embed(context, {}, EncoderHardware(hardware.device), space=space)
            commands_run.append(f"embed --space {space}")
        if snapshot.entry(IndexEntry, space) and space in names["vectors"] | names["parts"] | names["codebooks"]:
            params = snapshot.existing(IndexEntry, space).params
            run_index(context, params, space=space, retrain=space in names["codebooks"])
            commands_run.append(f"index --space {space}")
    if names["bands"] or names["duplicates"]:
        run_near_duplicates(context, work.near or NearDuplicatesParams())
        commands_run.append("dedup --near-duplicates")
    for table in sorted(names["neighbours"] | names["joined"]):
        entry = snapshot.existing(TableEntry, table)
        hardware = replace(hardware, device=chosen_device(hardware.device))
        plan = plan_neighbours(
            context, context.view(), entry.params, hardware, queries=entry.queries, space=entry.space, table=table
        )
        execute_neighbours(context, replace(plan, is_current=False))  # its files are damaged, whatever its inputs are
        commands_run.append(f"neighbours --table {table}")
    tag_commands = [f"tag --name {name}" for name in sorted(names["attributes"])]
    return tuple(commands_run), (*tag_commands, *(f"ingest --source {name}" for name in work.sources))


def sources_of(view: View, shards: Iterable[ChunkRange]) -> set[str]:
    """The sources of shards."""
    first_chunks = np.array([span.first_chunk for span in shards], dtype=np.int64)
    return {view.shards.source[shard] for shard in view.shards.locate(first_chunks)[0].tolist()}
