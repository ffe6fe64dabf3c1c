"""The index parts of a space as a snapshot sees them: what `search` and `neighbours` look through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodb.ann.codebook import Codebook, load_codebook
from retrodb.ann.exclusion import Keys
from retrodb.ann.part import open_part
from retrodb.ann.rerank import LivePart
from retrodb.errors import MissingStep
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.clusters import cluster_keys
from retrodb.view.view import View

EXCLUSIONS = ("document", "content", "cluster")
"""Kinds of exclusion keys that database rows carry; a query's training sequence is a set of `document` keys."""


@dataclass(frozen=True)
class PartFiles:
    """The files of one index part; all cover the same rows."""

    folder: str
    records: tuple[FileRecord, ...]

    @property
    def span(self) -> FileRecord:
        """Any of the records: they share range and bitmap."""
        return self.records[0]


def parts_of(view: View, space: str) -> list[PartFiles]:
    """The parts of a space, by ascending first chunk."""
    folders: dict[str, list[FileRecord]] = {}
    for record in view.manifest.files("parts", space):
        folders.setdefault(record.path.rpartition("/")[0], []).append(record)
    parts = [PartFiles(folder, tuple(records)) for folder, records in folders.items()]
    return sorted(parts, key=lambda part: (part.span.first_chunk, part.folder))


def open_codebook(view: View, space: str) -> Codebook:
    """The codebook of a space, opened after its digest was compared.

    Raises:
        MissingStep: when the space has no index, or is not embedded.
    """
    if view.snapshot.entry("space", space) is None:
        raise MissingStep(f"space '{space}' has no vectors", remedy="Run 'retrodb embed' first.")
    entry = view.snapshot.entry("index", space)
    if entry is None:
        raise MissingStep(f"space '{space}' has no index", remedy="Run 'retrodb index' first.")
    path = path_of("codebooks", name=space, digest=entry["codebook"])
    [record] = [record for record in view.manifest.files("codebooks", space) if record.path == path]
    return load_codebook(view.files.open(record).read_bytes())


def live_parts(
    view: View, space: str, *, kinds: Sequence[str] = (), allowed: Mapping[str, frozenset[str]] | None = None
) -> list[LivePart]:
    """Every part with its live rows, and the exclusion keys of the kinds that a search needs.

    Args:
        allowed: restricts the database side: `{"source": names}`.
    """
    parts = []
    for files in parts_of(view, space):
        folder = _verified_folder(view, files)
        ids = files.span.first_chunk + files.span.row_set.present
        parts.append(
            LivePart(
                part=open_part(folder),
                ids_N=ids,
                fetch=_Fetch(view, space, ids),
                allowed_N=_allowed(view, ids, allowed or {}),
                keys={kind: database_keys(view, kind, ids) for kind in kinds},
            )
        )
    return parts


@dataclass(frozen=True)
class _Fetch:
    """Vectors by part-local rows, from the space's vector files."""

    view: View
    space: str
    ids: Int64Array

    def __call__(self, rows: Int64Array) -> AnyArray:
        return self.view.vectors(self.space, self.ids[rows])


def database_keys(view: View, kind: str, ids: Int64Array) -> Keys:
    """(Q,) exclusion keys of database chunks: of their document, of its text, or of its cluster of near-duplicates."""
    if kind == "cluster":
        return cluster_keys(view, ids)
    return view.chunks.document_ids(ids) if kind == "document" else view.chunks.content_keys(ids)


def _allowed(view: View, ids: Int64Array, restriction: Mapping[str, frozenset[str]]) -> BoolArray:
    if not len(ids):
        return np.zeros(0, dtype=bool)
    first, count = int(ids[0]), int(ids[-1] - ids[0]) + 1
    mask = view.wanted_mask(first, count)[ids - first]
    if "source" in restriction:
        index, _ = view.shards.locate(ids)
        in_source = np.array([name in restriction["source"] for name in view.shards.source] + [False])
        mask &= in_source[index]
    return mask


def _verified_folder(view: View, files: PartFiles) -> Path:
    """The local folder of a part after every file in it was verified."""
    paths = [view.files.open(record) for record in files.records]
    return paths[0].parent
