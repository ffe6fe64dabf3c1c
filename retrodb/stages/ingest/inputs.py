"""Which files an ingest reads: those that it is given, without those that were ingested whole before.

An ingest that replaces or removes a document makes the source forget the files of all earlier ingests. So an older version
of a file can be ingested again like any other file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from retrodb.config import IngestParams
from retrodb.corpus.input_files import expand_inputs, file_digest, spool
from retrodb.corpus.split import InputFile
from retrodb.engine.run import Run
from retrodb.errors import UsageError
from retrodb.format.entries import SourceEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import TEMPORARY, Storage, temporary_name
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

STANDARD_INPUT = "-"
_NOT_IN_MAPPING = ("mirror", "limit", "max_reject_rate")
"""Parameters that do not change how a record becomes a document."""


@dataclass(frozen=True)
class IngestedFile:
    """A file that was ingested whole: a row of schema `INPUTS`."""

    path: str  # as the user gave it
    size_bytes: int
    digest: str  # of its content, name and format
    mapping: str  # how its records became documents


@dataclass(frozen=True)
class Inputs:
    """The files of a run: those to read, and those that were ingested whole before."""

    files: tuple[InputFile, ...]  # standard input is a file of the storage here, named "-"
    digests: tuple[str, ...]  # of each file: content, name and format
    mapping: str  # how records become documents: a file that is read with another mapping is another input
    skipped: tuple[IngestedFile, ...] = ()

    @property
    def plan(self) -> list[list[str]]:
        """The part of a run's identity that describes the files."""
        return [
            [shown_path(file), file.name, file.format, digest]
            for file, digest in zip(self.files, self.digests, strict=True)
        ]

    def ingested(self, crashed: set[str]) -> list[IngestedFile]:
        """The files that were read whole: all except those whose path is in `crashed`."""
        return [
            IngestedFile(shown_path(file), file.size_bytes, digest, self.mapping)
            for file, digest in zip(self.files, self.digests, strict=True)
            if shown_path(file) not in crashed
        ]


def inputs_table(files: Iterable[IngestedFile]) -> pa.Table:
    """The table of an inputs file, schema `INPUTS`."""
    import pyarrow as pa

    from retrodb.format.schemas import INPUTS

    return pa.Table.from_pylist([vars(file) for file in files], schema=INPUTS)


def shown_path(file: InputFile) -> str:
    """The path as the user gave it."""
    return STANDARD_INPUT if file.name == STANDARD_INPUT else file.path


def find_inputs(view: View, inputs: Sequence[str], files_from: Sequence[str], params: IngestParams) -> Inputs:
    """The files to read. With `mirror` these are all files or none, because unchanged files tell which documents are missing.

    Raises:
        UsageError: no input file is given.
        InputError: an input does not exist or cannot be read.
    """
    files = _expanded(view.storage, inputs, files_from, params.format)
    if not files:
        raise UsageError("no input files", remedy="Name files, folders or globs after the database.")
    digests = [identity(file_digest(f.path), f.name, f.format) for f in files]
    mapping = identity({k: v for k, v in to_plain_object(params).items() if k not in _NOT_IN_MAPPING})
    all_inputs = Inputs(tuple(files), tuple(digests), mapping)
    ingested = {file.digest: file for file in _ingested_files(view, params.source) if file.mapping == mapping}
    if params.mirror:
        entry = view.snapshot.entry(SourceEntry, params.source)
        is_same = entry is not None and entry.mirror == mirror_identity(all_inputs)
        ingested = ingested if is_same else {}
    new = [i for i, digest in enumerate(digests) if digest not in ingested]
    for i, file in enumerate(files):
        if file.name == STANDARD_INPUT and i not in new:
            view.storage.delete(f"{TEMPORARY}/{os.path.basename(file.path)}")
    skipped = tuple(ingested[digest] for digest in digests if digest in ingested)
    return Inputs(tuple(files[i] for i in new), tuple(digests[i] for i in new), mapping, skipped)


def mirror_identity(inputs: Inputs) -> str:
    """Identifies the files that a source mirrors, in any order."""
    return identity(sorted(inputs.digests), inputs.mapping)


def keep_standard_input(storage: Storage, run: Run, inputs: Inputs) -> Inputs:
    """The inputs after standard input, if it is among them, was moved to the run that reads it."""
    for index, file in enumerate(inputs.files):
        if file.name == STANDARD_INPUT:
            path = path_of("runs", run=run.id, file="spool/standard-input")
            publish(storage, "runs", path, partial(os.replace, file.path))
            kept = replace(file, path=str(storage.local(path)))
            return replace(inputs, files=(*inputs.files[:index], kept, *inputs.files[index + 1 :]))
    return inputs


def _expanded(storage: Storage, inputs: Sequence[str], files_from: Sequence[str], format: str) -> list[InputFile]:
    if STANDARD_INPUT not in inputs:
        return expand_inputs(inputs, files_from, format)
    path = f"{TEMPORARY}/{temporary_name('standard-input')}"
    with storage.stage(path) as local:
        spool(sys.stdin.buffer, local)
    spooled = str(storage.local(path))
    files = expand_inputs([spooled if name == STANDARD_INPUT else name for name in inputs], files_from, format)
    return [replace(file, name=STANDARD_INPUT) if file.path == spooled else file for file in files]


def _ingested_files(view: View, source: str) -> list[IngestedFile]:
    """The files that a source was ingested from."""
    tables = [read_table(view.files.open(record)) for record in view.manifest.files("inputs", source)]
    return [IngestedFile(**row) for table in tables for row in table.to_pylist()]
