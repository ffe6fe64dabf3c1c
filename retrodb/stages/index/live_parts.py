"""The live index parts of a space as of a snapshot: what `search` and `neighbours` read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodb.ann.codebook import Codebook, load_codebook
from retrodb.ann.exclusion import ExclusionKeys
from retrodb.ann.part import Part, open_part
from retrodb.ann.rerank import LivePart
from retrodb.errors import MismatchError, MissingStep
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import MAX_ROWS, RowSet, mask_of
from retrodb.stages.dedup.clusters import cluster_keys
from retrodb.store.row_files import rows_digest
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

EXCLUSIONS = ("document", "sequence", "content", "cluster")
"""What the rows of a table can exclude. A document is an interval of ids, and so are those of a training sequence."""
KEY_KINDS = ("content", "cluster")
"""Those for which a database row needs a key."""


@dataclass(frozen=True)
class PartFiles:
    """The files of one index part. All cover the same rows."""

    folder: str
    records: tuple[FileRecord, ...]

    @property
    def span(self) -> ChunkRange:
        """The range of ids that its rows are numbered in."""
        return self.records[0].span

    def row_set(self, files: VerifiedFiles) -> RowSet:
        """The rows of the range that it holds."""
        return files.rows(self.records[0])

    @property
    def num_rows(self) -> int:
        """Number of vectors."""
        return self.records[0].num_rows


def parts_of(view: View, space: str) -> list[PartFiles]:
    """The parts of a space, by ascending first chunk."""
    folders: dict[str, list[FileRecord]] = {}
    for record in view.manifest.files("parts", space):
        folders.setdefault(record.path.rpartition("/")[0], []).append(record)
    parts = [PartFiles(folder, tuple(records)) for folder, records in folders.items()]
    return sorted(parts, key=lambda part: (part.span.first_chunk, part.folder))


def open_codebook(view: View, space: str) -> Codebook:
    """The codebook of a space, opened after its digest was compared. Raises as `codebook_record`."""
    return load_codebook(view.files.open(codebook_record(view, space)).read_bytes())


def codebook_record(view: View, space: str) -> FileRecord:
    """The file of the codebook of a space.

    Raises:
        MissingStep: when the space has no index, or is not embedded.
        MismatchError: when the space was embedded again since.
    """
    space_entry = view.snapshot.entry(SpaceEntry, space)
    if space_entry is None:
        raise MissingStep(f"space '{space}' has no vectors", remedy="Run 'retrodb embed' first.")
    entry = view.snapshot.entry(IndexEntry, space)
    if entry is None:
        raise MissingStep(f"space '{space}' has no index", remedy="Run 'retrodb index' first.")
    if (entry.fingerprint or space_entry.fingerprint) != space_entry.fingerprint:
        raise MismatchError(
            f"the index of space '{space}' was built on other vectors than the space has now",
            remedy="Run 'retrodb index --retrain'.",
        )
    path = path_of("codebooks", name=space, digest=entry.codebook)
    [record] = [record for record in view.manifest.files("codebooks", space) if record.path == path]
    return record


@dataclass(frozen=True)
class MissingRows:
    """The embeddable rows of one file of vectors that no part holds: their number and digest say which, see `rows_to_index`."""

    vectors: FileRecord
    rows: str | None  # digest of their bitmap; None: every row of the file's range
    num_rows: int


def missing_rows(view: View, space: str) -> Iterator[MissingRows]:
    """The rows of every file of vectors that no part holds. Reads row bitmaps of `unindexed_files`, of one after the other."""
    if files := unindexed_files(view, space):
        parts = coverage_of(view, parts_of(view, space))
        yield from (missing for record in files if (missing := missing_in(view, parts, record)))


def unindexed_files(view: View, space: str) -> list[FileRecord]:
    """The files of vectors of the shards of which fewer chunks have a part than a vector: no other file has missing rows."""
    manifest = view.manifest
    is_behind = manifest.num_covered("parts", space) < manifest.num_covered("vectors", space)
    vectors = view.coverage("vectors", space)
    shards = (view.shards.record(number).span for number in np.flatnonzero(is_behind).tolist())
    return list(dict.fromkeys(record for span in shards for record in vectors.overlapping(*span)))


def missing_in(view: View, parts: Coverage, vectors: FileRecord) -> MissingRows | None:
    """The rows of one file of vectors that no part holds; None where there are none."""
    if _has_equal_part(parts, vectors):
        return None
    if rows_follow_from_records(view, parts, vectors):
        return MissingRows(vectors, vectors.rows, vectors.num_rows)
    rows = rows_to_index(view, parts, vectors)
    return MissingRows(vectors, rows_digest(rows), len(rows)) if len(rows) else None


def rows_follow_from_records(view: View, parts: Coverage, vectors: FileRecord) -> bool:
    """Whether records alone show that a part has all rows of a file, or that all are missing. Else row bitmaps are read."""
    if _has_equal_part(parts, vectors):
        return True
    is_whole = view.chunks.is_all_live(*vectors.span) and view.is_all_screened(*vectors.span)
    return is_whole and not parts.overlapping(*vectors.span)


def _has_equal_part(parts: Coverage, vectors: FileRecord) -> bool:
    """Whether one part has all rows of a file."""
    overlapping = parts.overlapping(*vectors.span)
    return any((part.span, part.rows) == (vectors.span, vectors.rows) for part in overlapping)


def rows_to_index(view: View, parts: Coverage, vectors: FileRecord) -> RowSet:
    """The live, screened rows of a file of vectors that no part holds."""
    rows = view.files.rows(vectors).roaring - parts.covered_rows(*vectors.span)
    rows &= view.chunks.live_rows(*vectors.span)  # a file of vectors has keys only
    if not view.is_all_screened(*vectors.span):
        return RowSet.from_mask(mask_of(rows, vectors.num_chunks) & view.screened_mask(*vectors.span))
    return RowSet.from_rows(rows, vectors.num_chunks)


def coverage_of(view: View, parts: Sequence[PartFiles]) -> Coverage:
    """Parts, found by the ids of their rows."""
    return Coverage([part.records[0] for part in parts], view.files)


def live_parts(
    view: View,
    space: str,
    *,
    kinds: Sequence[str] = (),
    source: str | None = None,
    documents: Int64Array | None = None,
) -> list[LivePart]:
    """Every part with its live rows, and the exclusion keys of the kinds that a search needs. Arguments: see `LiveParts`."""
    return list(LiveParts(view, space, tuple(kinds), source, documents))


@dataclass(frozen=True)
class LiveParts:
    """The parts of `live_parts`, opened one after the other, each time that they are iterated."""

    view: View
    space: str
    kinds: tuple[str, ...] = ()  # of exclusion keys
    source: str | None = None  # restricts the database side to one source
    documents: Int64Array | None = (
        None  # and to the documents that begin at these ids (ascending), as of `documents_where`
    )

    def __iter__(self) -> Iterator[LivePart]:
        return _each_live_part(self.view, self.space, self.kinds, self.source, self.documents)


def _each_live_part(
    view: View, space: str, kinds: Sequence[str], source: str | None, documents: Int64Array | None
) -> Iterator[LivePart]:
    covered_end = 0  # one past the ids of the parts before
    for number, files in enumerate(all_files := parts_of(view, space)):
        ids = files.span.first_chunk + files.row_set(view.files).present
        overlaps = files.span.first_chunk < covered_end
        before = Coverage([part.records[0] for part in all_files[:number]], view.files) if overlaps else None
        allowed = live_rows(view, files, ids, before) & _chosen(view, ids, source, documents)
        covered_end = max(covered_end, files.span.end)
        yield LivePart(
            part=open_files(view.files, files),
            ids_N=ids,
            fetch=_VectorReader(view, space, ids),
            allowed_N=None if allowed.all() else allowed,
            keys={kind: database_keys(view, kind, ids) for kind in kinds},
        )


@dataclass(frozen=True)
class _VectorReader:
    """Reads the vectors of a part by the rows of the part."""

    view: View
    space: str
    ids: Int64Array

    def __call__(self, rows: Int64Array) -> AnyArray:
        return self.view.vectors(self.space, self.ids[rows])


def key_kinds(exclude: Sequence[str]) -> tuple[str, ...]:
    """The exclusions of a table for which a database row needs a key."""
    return tuple(kind for kind in exclude if kind in KEY_KINDS)


def database_keys(view: View, kind: str, ids: Int64Array) -> ExclusionKeys:
    """(Q,) exclusion keys of database chunks: their document, its text, or its cluster of near-duplicates."""
    if kind == "cluster":
        return cluster_keys(view, ids)
    return view.chunks.content_keys(ids) if kind == "content" else view.chunks.document_ids(ids)


def live_rows(view: View, files: PartFiles, ids: Int64Array, before: Coverage | None) -> BoolArray:
    """(N,) bool: which rows of a part are live, screened, and in no part before it. A part has keys only.

    Args:
        ids: (N,) the chunk ids of its rows.
        before: the parts before, where one of them holds rows of this part too; a row is found in the first of them.
    """
    if not len(ids):
        return np.zeros(0, dtype=bool)
    if files.span.num_chunks > MAX_ROWS:  # of a merged part: masks of its range would be longer than all of its rows
        held = [] if before is None else [hit.where for hit in before.lookup(ids)]
        mask = view.chunks.is_live(ids) & view.is_screened(ids)
        mask[np.concatenate([np.empty(0, np.int64), *held])] = False
        return mask
    first, count = int(ids[0]), int(ids[-1] - ids[0]) + 1
    mask = (view.chunks.live_mask(first, count) & view.screened_mask(first, count))[ids - first]
    if before is not None:
        mask &= ~before.covered_mask(*files.span)[ids - files.span.first_chunk]
    return mask


def _chosen(view: View, ids: Int64Array, source: str | None, documents: Int64Array | None) -> BoolArray:
    mask = np.ones(len(ids), dtype=bool)
    if source is not None:
        index, _ = view.shards.locate(ids)
        mask &= np.array([name == source for name in view.shards.source] + [False])[index]
    if documents is not None:
        mask &= np.isin(view.chunks.document_ids(ids), documents)
    return mask


def open_files(files: VerifiedFiles, part: PartFiles) -> Part:
    """An open part of the database, of which every byte is verified before it is read.

    Raises:
        MissingFileError, DamagedFileError: for its description and its offsets; for another file, when that is first read.
    """
    records = {record.path.rpartition("/")[2]: record for record in part.records}
    return open_part(Path(part.folder), lambda name: files.bytes(records[name]))
