"""What a compaction will write: for every chosen range of ids its new files, and the tombstones that are left.

A document whose chunks are all deleted goes whole. Of one that a decision keeps out (a leak, a filter) its key stays in the ids
file, and the tombstone on its first row: so the same document, ingested again, stays out as it did before. A document that lost
some chunks keeps its place; the rows of these chunks are then in no file.

Legend: N rows of a range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.entries import AttributeEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.maintain.compact.policy import ShardState, choose_compactions
from retrodb.maintain.compact.rewrite import Input, Output, hex_rows
from retrodb.stages.ingest.change import REMOVED, SUPERSEDED
from retrodb.stages.ingest.shard import SHARD_KINDS
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.coverage import Coverage
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import View

PURGED = "purged"
"""Reason of what is gone for ever."""

_OWN_REASONS = (SUPERSEDED, REMOVED, PURGED)  # no decision that a later ingest has to be told of by the document's key


_NEVER_WORN = 2.0  # no share of rows is as high


@dataclass(frozen=True)
class Rewrite:
    """One range of ids that is written anew."""

    query_set: str  # "" for the database's own chunks
    source: str
    first_chunk: int
    num_chunks: int
    num_shards: int  # that become one
    keep_N: BoolArray  # rows that stay
    documents_N: BoolArray  # first rows of the documents that stay
    entries_N: BoolArray  # first rows of the documents whose keys stay
    dropped_chunks: int
    dropped_documents: int
    outputs: tuple[Output, ...]
    drops: tuple[str, ...]  # files that it replaces


@dataclass(frozen=True)
class RowsToDrop:
    """Ids of rows that have to go, whatever the share of them."""

    ids: dict[str, Int64Array]  # query set -> ids, ascending; "" for the database's own chunks

    def mask(self, query_set: str, first: int, count: int) -> BoolArray:
        """(count,) bool: which rows of a range have to go."""
        mask = np.zeros(count, dtype=bool)
        ids = self.ids.get(query_set, np.empty(0, np.int64))
        mask[ids[(ids >= first) & (ids < first + count)] - first] = True
        return mask


def plan_rewrites(view: View, query_set: str, min_deleted: float, must_go: RowsToDrop | None = None) -> list[Rewrite]:
    """The ranges to write anew; with `must_go` only those that hold one of these rows, and none is joined."""
    chunks = view.query_set(query_set) if query_set else view.chunks
    states = [_state(view, query_set, chunks, record, must_go) for record in chunks.ranges]
    how = (min_deleted,) if must_go is None else (_NEVER_WORN, 0)  # then nothing is worn by itself, or joined
    runs = choose_compactions(states, *how)
    return [_rewrite(view, query_set, chunks, [states[place] for place in run]) for run in runs]


def _state(view: View, query_set: str, chunks: ChunkSet, record: FileRecord, must_go: RowsToDrop | None) -> ShardState:
    span = record.first_chunk, record.num_chunks
    present = chunks.present_mask(*span)
    deleted = int((present & ~chunks.live_mask(*span)).sum())
    state = ShardState(_source(view, query_set, chunks, record), *span, int(present.sum()), deleted)
    if must_go is None:
        return state
    wanted = must_go.mask(query_set, *span)
    held = bool((wanted & (present | _first_rows(chunks, *span))).any())
    for content, coverage, _ in _beside(view, query_set):
        if content == "array":  # vectors that came late may hold rows that the shard has lost already
            held = held or bool((~present & coverage.covered_mask(*span)).any())
    return replace(state, must_go=held)


def _source(view: View, query_set: str, chunks: ChunkSet, record: FileRecord) -> str:
    """What the range belongs to: only ranges of one source are joined."""
    if not query_set:
        [shard], _ = view.shards.locate(np.array([record.first_chunk]))
        return str(view.shards.source[shard])
    sources = chunks.documents_table(record).column("source")
    return str(sources[0].as_py()) if len(sources) else ""


def _beside(view: View, query_set: str) -> Iterator[tuple[str, Coverage, tuple[str, str, str]]]:
    """Every kind of files beside the shard's own: what they hold, the files, and kind, name and path of a new one."""
    spaces = view.snapshot.names(SpaceEntry)
    if query_set:
        for space in spaces:
            path = path_of("queries", name=query_set, task="{task}", file=f"vectors.{space}.npy")
            yield "array", view.query_vectors(query_set, space), ("queries", query_set, path)
        return
    for space in spaces:
        yield (
            "array",
            view.coverage("vectors", space),
            ("vectors", space, path_of("vectors", name=space, task="{task}")),
        )
    for name in view.snapshot.names(AttributeEntry):
        place = ("attributes", name, path_of("attributes", name=name, task="{task}"))
        yield "table", view.coverage("attributes", name), place
    for name in sorted({record.name for record in view.manifest.files("bands")}):
        yield "bands", view.coverage("bands", name), ("bands", name, path_of("bands", name=name, task="{task}"))


def _rewrite(view: View, query_set: str, chunks: ChunkSet, shards: Sequence[ShardState]) -> Rewrite:
    first = shards[0].first_chunk
    count = shards[-1].first_chunk + shards[-1].num_chunks - first
    keep, documents = chunks.live_mask(first, count), np.zeros(count, dtype=bool)
    num_documents = 0
    alive = np.concatenate(([0], np.cumsum(keep)))
    for record in chunks.overlapping("documents", first, count):
        layout = chunks.layout(record)
        begins = layout.first_row + record.first_chunk - first
        documents[begins[alive[begins + layout.num_chunks] > alive[begins]]] = True
        num_documents += len(begins)
    entries = documents | _kept_out(chunks, first, count)
    outputs, drops = _shard_outputs(query_set, chunks, first, count, keep, documents, entries)
    for content, coverage, (kind, name, path) in _beside(view, query_set):
        inputs = [r for r in coverage.overlapping(first, count) if _lies_in(r, first, count)]
        held = (documents if content == "table" else keep) & _covered(inputs, first, count)
        drops += [record.path for record in inputs]
        if content == "bands":
            held = np.ones(count, dtype=bool)
            inputs = inputs if len(inputs) == len(shards) else []  # those of some shards say nothing of the whole
        if inputs and held.any():
            of_documents = hex_rows(documents) if content == "bands" else None
            outputs.append(
                Output(content, kind, name, path, hex_rows(held), tuple(map(Input.of, inputs)), of_documents)
            )
    return Rewrite(
        query_set=query_set, source=shards[0].source, first_chunk=first, num_chunks=count, num_shards=len(shards),
        keep_N=keep, documents_N=documents, entries_N=entries,
        dropped_chunks=sum(shard.num_rows for shard in shards) - int(keep.sum()),
        dropped_documents=num_documents - int(documents.sum()),
        outputs=tuple(outputs), drops=tuple(drops),
    )  # fmt: skip


def _kept_out(chunks: ChunkSet, first: int, count: int) -> BoolArray:
    """(count,) bool: first rows of documents that a decision keeps out, and that neither source nor purge has settled."""
    kept_out, settled = np.zeros((2, count), dtype=bool)
    for reason, mask in chunks.tombstones.deleted_by_reason(first, count).items():
        (settled if reason in _OWN_REASONS else kept_out)[mask] = True
    return kept_out & ~settled & _first_rows(chunks, first, count)


def _first_rows(chunks: ChunkSet, first: int, count: int) -> BoolArray:
    """(count,) bool: where documents begin, also those of which only the key is there still."""
    begins = np.zeros(count, dtype=bool)
    for record in chunks.overlapping("ids", first, count):
        begins[chunks.map(record)["row"] + record.first_chunk - first] = True
    return begins


def _shard_outputs(
    query_set: str, chunks: ChunkSet, first: int, count: int, keep: BoolArray, documents: BoolArray, entries: BoolArray
) -> tuple[list[Output], list[str]]:
    """The five files that every range has, and those that they replace."""
    outputs, drops = [], []
    for kind in SHARD_KINDS:
        inputs = chunks.overlapping(kind, first, count)
        drops += [record.path for record in inputs]
        if query_set:
            ending = inputs[0].path.rpartition(".")[2]
            place = "queries", query_set, path_of("queries", name=query_set, task="{task}", file=f"{kind}.{ending}")
        else:
            place = kind, "", path_of(kind, task="{task}")
        of_documents = {"documents": documents, "ids": entries}.get(kind)
        outputs.append(
            Output(
                kind if kind in ("documents", "ids", "chunks") else "array",
                *place,
                hex_rows(keep),
                tuple(map(Input.of, inputs)),
                None if of_documents is None else hex_rows(of_documents),
            )
        )
    return outputs, drops


def _lies_in(record: FileRecord, first: int, count: int) -> bool:
    return first <= record.first_chunk and record.first_chunk + record.num_chunks <= first + count


def _covered(records: Sequence[FileRecord], first: int, count: int) -> BoolArray:
    return Coverage(records).covered_mask(first, count)


def tombstones_left(view: View, query_set: str, rewrites: Sequence[Rewrite]) -> list[Tombstone]:
    """Every word that still says something, once the rewrites are done: rows that are gone need none.

    But for those on the first rows of documents whose keys stay: they say why the document is kept out.
    """
    chunks = view.query_set(query_set) if query_set else view.chunks
    left: list[Tombstone] = []
    needed = {(r.first_chunk, r.num_chunks): r.keep_N | (r.entries_N & ~r.documents_N) for r in rewrites}
    replaced = {path for rewrite in rewrites for path in rewrite.drops}
    untouched = {(r.first_chunk, r.num_chunks): None for r in chunks.ranges if r.path not in replaced}
    for (first, count), is_needed in sorted({**untouched, **needed}.items(), key=lambda each: each[0]):
        for reason, mask in sorted(chunks.tombstones.deleted_by_reason(first, count).items()):
            rows = np.flatnonzero(mask if is_needed is None else mask & is_needed)
            if len(rows):
                left.append(tombstone(first, count, reason, rows))
    return left
