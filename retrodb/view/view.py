"""View: reading one snapshot, whole and unchanging, without any lock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.entries import QueriesEntry, SpaceEntry, TestsetEntry
from retrodb.format.part_files import CODE_FILES, CODES_FILE
from retrodb.format.records import ChunkRange, FileRecord, Record, covered, screening_key
from retrodb.format.settings import Settings
from retrodb.format.snapshot import Snapshot
from retrodb.store.manifest import Manifest, ShardTable, load_manifest
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.coverage import Coverage
from retrodb.view.part_codes import PartCodes
from retrodb.view.tombstones import TombstoneSet

if TYPE_CHECKING:
    from retrodb.format.arrays import AnyArray, BoolArray, Int64Array

_FEW_IDS = 256  # candidates of a query

SELF = "self"
"""The query set of the database's own chunks: always there."""


def tombstones_name(query_set: str) -> str:
    """The name that the manifest gives the tombstones of a query set: "" for the database's own chunks."""
    return "" if query_set == SELF else query_set


class View:
    """The database as of one snapshot."""

    def __init__(self, storage: Storage, settings: Settings, snapshot: Snapshot, staged: Sequence[Record] = ()) -> None:
        """
        Args:
            staged: records of a change that is not committed yet. The view shows the database as if it were.
        """
        self.storage, self.settings, self.snapshot = storage, settings, snapshot
        self._staged = staged
        self.files = VerifiedFiles(storage)
        self._coverages: dict[tuple[str, str | None], Coverage] = {}
        self._query_sets: dict[str, ChunkSet] = {}
        self._parts: dict[str, PartCodes] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The live files and shards. The settings and the tokenizer are compared with it once, when it is read."""
        manifest = load_manifest(self.storage, self.snapshot, self._staged)
        for kind in ("settings", "tokenizer"):
            for record in manifest.files(kind):
                self.files.open(record)
        return manifest

    @property
    def shards(self) -> ShardTable:
        """The live shards, by ascending first chunk."""
        return self.manifest.shards

    @cached_property
    def chunks(self) -> ChunkSet:
        """The database's own chunks."""
        return ChunkSet(self.files, self.settings, self.manifest.files, self.tombstones())

    def query_set(self, name: str) -> ChunkSet:
        """The chunks of a query set; `self` is the database's own.

        Raises:
            UsageError: when there is no such query set.
        """
        if name == SELF:
            return self.chunks
        if name not in self._query_sets:
            if self.snapshot.entry(QueriesEntry, name) is None:
                have = ", ".join([SELF, *self.snapshot.names(QueriesEntry)])
                raise UsageError(f"no query set '{name}'", remedy=f"There are: {have}.")
            self._query_sets[name] = self._read_query_set(name)
        return self._query_sets[name]

    def _read_query_set(self, name: str) -> ChunkSet:
        files = self.manifest.files("queries", name)
        records = {kind: [r for r in files if r.path.rpartition("/")[2].startswith(f"{kind}.")] for kind in CHUNK_FILES}
        return ChunkSet(self.files, self.settings, records.__getitem__, self.tombstones(name))

    def tombstones(self, query_set: str = SELF) -> TombstoneSet:
        """The tombstones of a query set, or of the database's own chunks."""
        return TombstoneSet(self.files.open(record) for record in self.tombstone_files(query_set))

    def deletions(self, query_set: str, span: ChunkRange) -> list[tuple[str, int]]:
        """Where the tombstones of a range are: the SHA-256 of their file, and their row in it, in the order of their commits."""
        files = self.tombstone_files(query_set)
        locations = self.query_set(query_set).tombstones.locations(*span)
        return [(files[number].digest.sha256.hex(), row) for number, row in locations]

    def tombstone_files(self, query_set: str) -> list[FileRecord]:
        """The files of a query set's tombstones."""
        return self.manifest.files("tombstones", tombstones_name(query_set))

    def coverage(self, kind: str, name: str | None = None) -> Coverage:
        """The files of a kind, found by id."""
        key = (kind, name)
        if key not in self._coverages:
            self._coverages[key] = Coverage(self.manifest.files(kind, name), self.files)
        return self._coverages[key]

    def embeddable_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids want a vector: live keys that were screened against every registered test set."""
        return self.chunks.key_mask(first, count) & self.screened_mask(first, count)

    def screened_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids were screened against every registered test set."""
        mask = np.ones(count, dtype=bool)
        for ranges in self._screened.values():
            inside = np.zeros(count, dtype=bool)
            for start, end in ranges:
                inside[max(start - first, 0) : max(end - first, 0)] = True
            mask &= inside
        return mask

    def is_screened(self, ids: Int64Array) -> BoolArray:
        """(Q,) bool: which ids were screened against every registered test set."""
        is_screened = np.ones(len(ids), dtype=bool)
        for ranges in self._screened.values():
            bounds = np.array(ranges, dtype=np.int64).ravel()  # start, end, start, end, ...
            is_screened &= np.searchsorted(bounds, ids, side="right") % 2 == 1
        return is_screened

    def is_all_screened(self, first: int, count: int) -> bool:
        """Whether every id of a range was screened against every registered test set."""
        return all(covered(ranges, first, count) for ranges in self._screened.values())

    @cached_property
    def _screened(self) -> dict[str, list[tuple[int, int]]]:
        """For every test set the ranges of ids that were screened against its current version."""
        names = self.snapshot.names(TestsetEntry)
        keys = {name: screening_key(name, self.snapshot.existing(TestsetEntry, name).digest) for name in names}
        return {name: self.manifest.screened_ranges(key) for name, key in keys.items()}

    def unscreened_shards(self, testset: str) -> list[int]:
        """Indices of the shards that were not yet screened against a test set."""
        ranges, shards = self._screened[testset], self.shards
        spans = zip(shards.first_chunk.tolist(), shards.num_chunks.tolist(), strict=True)
        return [i for i, (first, count) in enumerate(spans) if not covered(ranges, first, count)]

    def query_vectors(self, query_set: str, space: str) -> Coverage:
        """The files that hold the vectors of a query set in a space; those of `self` are the database's own.

        In a space that keeps no vectors they are the codes of its index parts.
        """
        if query_set == SELF:
            return self.coverage("vectors", space) if self.keeps_vectors(space) else self.codes(space)
        ending = f"/vectors.{space}.npy"
        return Coverage([r for r in self.manifest.files("queries", query_set) if r.path.endswith(ending)], self.files)

    def vectors(self, space: str, ids: Int64Array, query_set: str = SELF) -> AnyArray:
        """Vectors (Q, D) float16 of rows of a query set in a space; zeros for rows without one."""
        vectors = np.zeros((len(ids), self.snapshot.existing(SpaceEntry, space).dimension), dtype=np.float16)
        coverage = self.query_vectors(query_set, space)
        if len(ids) <= _FEW_IDS and self.keeps_vectors(space) and coverage.is_disjoint:
            found = coverage.find_each(ids)
            if found:
                pieces = [self.chunks.map(record).piece(position) for _, record, position in found]
                vectors[[where for where, _, _ in found]] = np.concatenate(pieces)
            return vectors
        for hit in coverage.lookup(ids):
            if hit.record.kind == "parts":
                vectors[hit.where] = self._part_codes(hit.record).vectors(hit.positions)
            else:
                vectors[hit.where] = self.chunks.map(hit.record)[hit.positions]
        return vectors

    def keeps_vectors(self, space: str) -> bool:
        """Whether the database's vectors in a space are stored, not their codes alone; also true before there are any."""
        entry = self.snapshot.entry(SpaceEntry, space)
        return entry is None or entry.params.keep_vectors is not False

    def codes(self, space: str) -> Coverage:
        """The codes of the index parts of a space, found by id: one file for each part."""
        key = ("codes", space)
        if key not in self._coverages:
            records = self.manifest.files("parts", space)
            self._coverages[key] = Coverage([r for r in records if r.path.endswith(f"/{CODES_FILE}")], self.files)
        return self._coverages[key]

    def _part_codes(self, codes: FileRecord) -> PartCodes:
        """The codes of a part."""
        folder = codes.path.rpartition("/")[0]
        if folder not in self._parts:
            wanted = {f"{folder}/{name}": name for name in CODE_FILES}
            records = [record for record in self.manifest.files("parts", codes.name) if record.path in wanted]
            self._parts[folder] = PartCodes({wanted[record.path]: self.files.array(record) for record in records})
        return self._parts[folder]


CHUNK_FILES = ("documents", "chunks", "tokens", "hashes", "ids")
"""The kinds of files that hold chunks; those of a query set have these names before the dot."""
