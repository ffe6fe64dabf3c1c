"""Repair: what damage cost is made again from what is left, and what cannot be is named.

Three ways, by the kind of file. Tokens, hashes and ids are made anew in their place: their bytes are known, so every snapshot
that names them is whole again. What a stage makes (vectors, index parts, codebooks, tables, bands) is taken out of the manifest,
and the stage is run: it does what is missing. Where documents or their text are lost, the whole shard leaves the manifest, since
without either nothing in it can be read; its ids stay given, so whatever names them finds no chunk. That needs `accept_loss`.
Nothing is deleted: damaged bytes are moved to `quarantine/`, where no snapshot and no collection looks. What is still to be made
again stands in `repair.json` meanwhile, so that a repair that was interrupted is finished by the next one.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import orjson

from retrodb.config import DEFAULT_MEMORY_BYTES, NearDuplicatesParams
from retrodb.engine.run import open_run
from retrodb.format.entries import DuplicatesEntry, IndexEntry, SpaceEntry, TableEntry
from retrodb.format.json_values import from_plain
from retrodb.format.kinds import KINDS, path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import OP_DROP_FILE, OP_DROP_SHARD, DropRecord, FileRecord
from retrodb.maintain.check.command import Damage, run_check
from retrodb.maintain.check.rebuild import REBUILT, content_of, rebuild
from retrodb.stages.context import Context
from retrodb.stages.dedup.near_duplicates import run_near_duplicates
from retrodb.stages.embed.command import run_embed
from retrodb.stages.embed.space_encoder import EncoderHardware
from retrodb.stages.index.command import run_index
from retrodb.stages.neighbours.block_join import JoinHardware
from retrodb.stages.neighbours.command import run_neighbours
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import digest_file
from retrodb.store.storage import Storage
from retrodb.store.verify import damage
from retrodb.view.view import CHUNK_FILES, View
from retrodb.view.where import live_documents

QUARANTINE = "quarantine"

REMADE = ("vectors", "parts", "codebooks", "neighbours", "joined", "bands", "duplicates", "attributes", "inputs")
"""Kinds that leave the manifest when damaged: a command makes them again, or does without."""
LOST = ("documents", "chunks", "reports", "rejects", "edits")
"""Kinds of which something is lost for good when they are damaged; the first two take their shard with them."""
_REPLACED = ("codebooks", "neighbours", "joined")
"""Kinds whose command puts new files in the place of the old in one commit: nothing may be read without them in between."""
Span = tuple[int, int]  # first chunk and number of chunks


@dataclass(frozen=True)
class RepairPlan:
    """What a repair does with each damaged file."""

    rebuilt: tuple[str, ...]  # made anew in their place
    remade: tuple[str, ...]  # leave the manifest; a command makes them again
    lost: tuple[str, ...]  # leave the manifest for good: needs --accept-loss
    lost_documents: tuple[str, ...]  # live documents that go with them, as source/id
    lost_unnamed: int  # documents that go too, whose names cannot be read any more
    left: tuple[Damage, ...]  # cannot be repaired here, each with its remedy


@dataclass(frozen=True)
class DatabaseRepairResult:
    """What a repair did."""

    snapshot: int
    plan: RepairPlan
    accepted_loss: bool  # else what is lost stays where it is, and so does what would be made again
    ran: tuple[str, ...]  # commands that made again what was missing
    to_run: tuple[str, ...]  # commands that are left to the user
    dry_run: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing that was damaged is in the newest snapshot any more."""
        undone = self.plan.left or (self.plan.lost and not self.accepted_loss)
        return not (undone or (self.dry_run and (self.plan.rebuilt or self.plan.remade or self.plan.lost)))


def run_repair(
    context: Context,
    *,
    accept_loss: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    device: str = "auto",
    dry_run: bool = False,
) -> DatabaseRepairResult:
    """Mend the newest snapshot.

    Args:
        accept_loss: whether to go on without what nothing can give back.
        memory_bytes: memory limit of neighbour joins.
        device: device of encoders and neighbour joins.

    Raises:
        DamagedFileError: for a snapshot or manifest segment, of which nothing can be told.
        ConflictError: when rows were written anew meanwhile.
        UsageError: for too little memory, before anything is changed.
    """
    hardware = JoinHardware(context.num_workers, memory_bytes, device)
    view = context.view()
    plan = plan_repair(view, context)
    result = DatabaseRepairResult(view.snapshot.number, plan, accept_loss, (), (), dry_run)
    if dry_run:
        return result
    records = {record.path: record for record in view.manifest.all_files()}
    for path in plan.rebuilt:
        _restore(view, records[path])
    if plan.lost and not accept_loss:
        return result
    gone = [records[path] for path in (*plan.remade, *plan.lost)]
    for record in gone:
        _quarantine(context.storage, record.path)
    work = Remake.of(view, gone).with_unfinished(context.storage)
    if work.kinds:
        context.storage.write(path_of("repairing"), orjson.dumps(asdict(work)))
    if dropped := [record for record in gone if record.kind not in _REPLACED]:
        _drop(context, view, dropped)
    ran, to_run = _make_again(context, work, hardware)
    if work.kinds:
        context.storage.delete(path_of("repairing"))
    after = context.view()
    for path in {record.path for record in gone}.difference(after.manifest.paths()):
        context.storage.delete(path)
    return replace(result, snapshot=after.snapshot.number, ran=ran, to_run=to_run)


def plan_repair(view: View, context: Context) -> RepairPlan:
    """Read every byte of a snapshot, and sort the damage by what can be done."""
    faults = {each.path: each for each in run_check(view, context.progress, read_data=True).damaged}
    records = {record.path: record for record in view.manifest.all_files() if record.path in faults}
    spans = _lost_spans(records.values())
    ways: dict[str, list[str]] = {"rebuilt": [], "remade": [], "lost": [], "left": []}
    for path in faults:
        ways[_way(records[path], spans) if path in records else "left"].append(path)
    names = [_names(view, span, faults) for span in sorted(spans)]
    return RepairPlan(
        rebuilt=tuple(ways["rebuilt"]),
        remade=tuple(ways["remade"]),
        lost=tuple(ways["lost"]),
        lost_documents=tuple(name for own in names if own is not None for name in own),
        lost_unnamed=sum(
            _num_documents(view, span) for span, own in zip(sorted(spans), names, strict=True) if own is None
        ),
        left=tuple(faults[path] for path in ways["left"]),
    )


def _lost_spans(damaged: Iterable[FileRecord]) -> set[Span]:
    """The shards that nobody can read any more."""
    return {(r.first_chunk, r.num_chunks) for r in damaged if r.kind in ("documents", "chunks")}


def _way(record: FileRecord, spans: set[Span]) -> str:
    content = content_of(record)
    if record.kind in CHUNK_FILES and (record.first_chunk, record.num_chunks) in spans:
        return "lost"
    if content in REBUILT:
        return "rebuilt"
    if content in REMADE:
        return "remade"
    return "lost" if record.kind in LOST else "left"


def _names(view: View, span: Span, faults: Collection[str]) -> list[str] | None:
    """The live documents of a shard by name; None when they cannot be read."""
    [record] = [r for r in view.manifest.files("documents") if (r.first_chunk, r.num_chunks) == span]
    if record.path in faults:
        return None
    live = live_documents(view.chunks, record)
    table = read_table(view.files.open(record), ["source", "doc_id"]).filter(live)
    return [f"{row['source']}/{row['doc_id']}" for row in table.to_pylist()]


def _num_documents(view: View, span: Span) -> int:
    [shard] = view.shards.locate(np.array([span[0]]))[0].tolist()
    return int(view.shards.num_documents[shard])


def _restore(view: View, record: FileRecord) -> None:
    """Make a file anew in its place; the bytes must be those that the manifest promises."""
    _quarantine(view.storage, record.path)
    chunks = view.query_set(record.name) if record.kind == "queries" else view.chunks
    with view.storage.stage(record.path) as local:
        rebuild(chunks, record, content_of(record), local)
        if digest_file(local) != record.digest:
            raise damage(record, "what can be made again differs from what was written")


def _quarantine(storage: Storage, path: str) -> None:
    """Keep a copy of damaged bytes, if there are any."""
    if storage.exists(path):
        with storage.stage(f"{QUARANTINE}/{path}") as copy:
            shutil.copyfile(storage.local(path), copy)


def _drop(context: Context, view: View, damaged: list[FileRecord]) -> None:
    """Take files out of the manifest, lost shards whole."""
    files, spans = view.manifest.all_files(), _lost_spans(damaged)
    follows = _Following.of(view, damaged, spans)
    drops = {record.path for record in files if record in damaged or follows.has(record)}
    run = open_run(context.storage, "repair", {"drops": sorted(drops), "snapshot": view.snapshot.number}, context.clock)
    change = Change(
        transaction=run.id,
        command="repair",
        arguments={"files": len(drops), "shards": len(spans)},
        clock=run.clock,
        conflict_keys=conflict_keys.compact(),
        drops=[
            *(DropRecord(OP_DROP_FILE, path) for path in sorted(drops)),
            *(DropRecord(OP_DROP_SHARD, first_chunk=first) for first, _ in sorted(spans)),
        ],
        entries={"duplicates/near": None} if follows.duplicates else {},
    )
    commit(context.storage, view.snapshot, change)


@dataclass(frozen=True)
class _Following:
    """Whole files that have to go because of damaged ones."""

    spans: set[Span]  # lost shards
    sources: set[str]  # of these: what is lost has to be read again
    parts: set[str]  # folders of damaged index parts
    vectors: list[FileRecord]  # without them an index part cannot tell true distances
    duplicates: bool  # without the pairs that were found, all documents are to be compared again

    @staticmethod
    def of(view: View, damaged: list[FileRecord], spans: set[Span]) -> _Following:
        return _Following(
            spans=spans,
            sources=_sources(view, spans),
            parts={record.path.rpartition("/")[0] for record in damaged if record.kind == "parts"},
            vectors=[record for record in damaged if record.kind == "vectors"],
            duplicates=any(record.kind == "duplicates" for record in damaged),
        )

    def has(self, record: FileRecord) -> bool:
        end = record.first_chunk + record.num_chunks
        match record.kind:
            case "inputs":
                return record.name in self.sources
            case "duplicates":
                return self.duplicates
            case "bands" if self.duplicates:
                return True
            case "parts" if record.path.rpartition("/")[0] in self.parts or any(
                each.name == record.name
                and each.first_chunk < end
                and record.first_chunk < each.first_chunk + each.num_chunks
                for each in self.vectors
            ):
                return True
        is_of_chunks = KINDS[record.kind].covers == "chunks"
        return is_of_chunks and any(first <= record.first_chunk and end <= first + count for first, count in self.spans)


@dataclass(frozen=True)
class Remake:
    """What commands have to make again."""

    kinds: Mapping[str, list[str]]  # kind of file -> spaces, tables, taggers, ... that lost some
    sources: list[str]  # whose lost shards have to be read again
    near: NearDuplicatesParams | None  # parameters of the search for near-duplicates

    @staticmethod
    def of(view: View, gone: list[FileRecord]) -> Remake:
        """What the loss of some files takes."""
        kinds: dict[str, set[str]] = defaultdict(set)
        for record in gone:
            kinds[content_of(record) if content_of(record) in REMADE else record.kind].add(record.name)
        near = view.snapshot.entry(DuplicatesEntry, "near")
        sources = sorted(_sources(view, _lost_spans(gone)))
        return Remake({k: sorted(names) for k, names in sorted(kinds.items())}, sources, near.params if near else None)

    def with_unfinished(self, storage: Storage) -> Remake:
        """This, and what an interrupted repair had still to do."""
        if not storage.exists(path_of("repairing")):
            return self
        before = orjson.loads(storage.read(path_of("repairing")))
        kinds = {
            kind: sorted({*self.kinds.get(kind, ()), *before["kinds"].get(kind, ())})
            for kind in sorted({*self.kinds, *before["kinds"]})
        }
        return Remake(
            kinds,
            sorted({*self.sources, *before["sources"]}),
            self.near or (before["near"] and from_plain(NearDuplicatesParams, before["near"], where="repair.json")),
        )


def _make_again(context: Context, work: Remake, hardware: JoinHardware) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Run the commands that make what is missing; gives those, and the ones that the user has to run."""
    of, snapshot = {kind: set(work.kinds.get(kind, ())) for kind in REMADE}, context.view().snapshot
    ran = []
    for space in snapshot.names(SpaceEntry):
        if space in of["vectors"] | of["parts"] or "queries" in work.kinds:
            run_embed(context, {}, EncoderHardware(hardware.device), space=space)
            ran.append(f"embed --space {space}")
        if snapshot.entry(IndexEntry, space) and space in of["vectors"] | of["parts"] | of["codebooks"]:
            index = snapshot.existing(IndexEntry, space).params
            run_index(context, index, space=space, retrain=space in of["codebooks"])
            ran.append(f"index --space {space}")
    if of["bands"] or of["duplicates"]:
        run_near_duplicates(context, work.near or NearDuplicatesParams())
        ran.append("dedup --near-duplicates")
    for table in sorted(of["neighbours"] | of["joined"]):
        entry = snapshot.existing(TableEntry, table)
        run_neighbours(
            context,
            entry.params,
            queries=entry.queries,
            space=entry.space,
            table=table,
            memory_bytes=hardware.memory_bytes,
            device=hardware.device,
        )
        ran.append(f"neighbours --table {table}")
    tags = [f"tag --name {name}" for name in sorted(of["attributes"])]
    return tuple(ran), (*tags, *(f"ingest --source {name}" for name in work.sources))


def _sources(view: View, spans: Iterable[Span]) -> set[str]:
    """The sources of shards."""
    firsts = np.array([first for first, _ in spans], dtype=np.int64)
    return {view.shards.source[shard] for shard in view.shards.locate(firsts)[0].tolist()}
