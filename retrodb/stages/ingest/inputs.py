"""Which files an ingest reads: those it was given, less those that were ingested whole before and still hold.

A file still holds as long as no later ingest of the source replaced or removed a document: from then on only the files of
that ingest do. So going back to an older version of a file is an ingest like any other.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from retrodb.config import IngestParams, to_mapping
from retrodb.corpus.input_files import expand_inputs, file_digest, spool
from retrodb.corpus.split import InputFile
from retrodb.engine.run import Run
from retrodb.errors import UsageError
from retrodb.format.entries import SourceEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import TEMPORARY, Storage
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

STANDARD_INPUT = "-"
_NOT_OF_THE_MAPPING = ("mirror", "limit", "max_reject_rate")


@dataclass(frozen=True)
class Inputs:
    """The files of a run: those to read, and those that were ingested whole before and still hold."""

    files: tuple[InputFile, ...]  # standard input is a file of the storage here, named "-"
    digests: tuple[str, ...]  # of each file: content, name and format
    mapping: str  # how records are mapped: a file read with another mapping is another input
    skipped: tuple[Mapping[str, Any], ...] = ()  # rows of schema `INPUTS`

    @property
    def plan(self) -> list[list[str]]:
        """What a run's identity says of the files."""
        return [
            [shown_path(file), file.name, file.format, digest]
            for file, digest in zip(self.files, self.digests, strict=True)
        ]

    def table(self, unread: set[str]) -> pa.Table:
        """Rows of schema `INPUTS` of the files that were read whole: all but those whose path is in `unread`."""
        import pyarrow as pa

        from retrodb.format.schemas import INPUTS

        rows = [
            {"path": shown_path(file), "size_bytes": file.size_bytes, "digest": digest, "mapping": self.mapping}
            for file, digest in zip(self.files, self.digests, strict=True)
            if shown_path(file) not in unread
        ]
        return pa.Table.from_pylist(rows, schema=INPUTS)

    def skipped_table(self) -> pa.Table:
        """Rows of schema `INPUTS` of the files that were not read again."""
        import pyarrow as pa

        from retrodb.format.schemas import INPUTS

        return pa.Table.from_pylist([dict(row) for row in self.skipped], schema=INPUTS)


def shown_path(file: InputFile) -> str:
    """The path as the user knows it."""
    return STANDARD_INPUT if file.name == STANDARD_INPUT else file.path


def find_inputs(view: View, inputs: Sequence[str], files_from: Sequence[str], params: IngestParams) -> Inputs:
    """The files to read. With `mirror` it is all or none: what unchanged files hold tells what is missing.

    Raises:
        UsageError, InputError: for inputs that cannot be meant.
    """
    files = _expanded(view.storage, inputs, files_from, params.format)
    if not files:
        raise UsageError("no input files", remedy="Name files, folders or globs after the database.")
    digests = [identity(file_digest(f.path), f.name, f.format) for f in files]
    mapping = identity({k: v for k, v in to_mapping(params).items() if k not in _NOT_OF_THE_MAPPING})
    whole = Inputs(tuple(files), tuple(digests), mapping)
    known = {row["digest"]: row for row in _known(view, params.source) if row["mapping"] == mapping}
    if params.mirror:
        entry = view.snapshot.entry(SourceEntry, params.source)
        is_same = entry is not None and entry.mirror == mirror_identity(whole)
        known = known if is_same else {}
    fresh = [i for i, digest in enumerate(digests) if digest not in known]
    for i, file in enumerate(files):
        if file.name == STANDARD_INPUT and i not in fresh:
            view.storage.delete(f"{TEMPORARY}/{os.path.basename(file.path)}")
    skipped = tuple(known[digest] for digest in digests if digest in known)
    return Inputs(tuple(files[i] for i in fresh), tuple(digests[i] for i in fresh), mapping, skipped)


def mirror_identity(found: Inputs) -> str:
    """What a source mirrors: equal for equal files, whatever their order."""
    return identity(sorted(found.digests), found.mapping)


def keep_standard_input(storage: Storage, run: Run, found: Inputs) -> Inputs:
    """The inputs with standard input, if it is among them, moved to the run that reads it."""
    for index, file in enumerate(found.files):
        if file.name == STANDARD_INPUT:
            path = path_of("runs", run=run.id, file="spool/standard-input")
            publish(storage, "runs", path, partial(os.replace, file.path))
            kept = replace(file, path=str(storage.local(path)))
            return replace(found, files=(*found.files[:index], kept, *found.files[index + 1 :]))
    return found


def _expanded(storage: Storage, inputs: Sequence[str], files_from: Sequence[str], format: str) -> list[InputFile]:
    if STANDARD_INPUT not in inputs:
        return expand_inputs(inputs, files_from, format)
    path = f"{TEMPORARY}/{uuid.uuid4().hex}-standard-input"
    with storage.stage(path) as local:
        spool(sys.stdin.buffer, local)
    spooled = str(storage.local(path))
    files = expand_inputs([spooled if name == STANDARD_INPUT else name for name in inputs], files_from, format)
    return [replace(file, name=STANDARD_INPUT) if file.path == spooled else file for file in files]


def _known(view: View, source: str) -> list[dict[str, Any]]:
    """Rows of the files of a source that were ingested whole and still hold."""
    tables = [read_table(view.files.open(record)) for record in view.manifest.files("inputs", source)]
    return [row for table in tables for row in table.to_pylist()]
