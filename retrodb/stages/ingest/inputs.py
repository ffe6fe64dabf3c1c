"""Which files an ingest reads: those that it is given, without those that were ingested whole before.

An ingest that replaces or removes a document makes the source forget the files of all earlier ingests. So an older version
of a file can be ingested again like any other file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.config import IngestParams
from retrodb.corpus.file_names import escape_name
from retrodb.corpus.input_files import STANDARD_INPUT, file_digest, find_files, is_stream, spool
from retrodb.corpus.split import InputFile
from retrodb.corpus.streams import open_input
from retrodb.engine.run import Run
from retrodb.errors import UsageError
from retrodb.format.entries import SourceEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.temporary import TEMPORARY, temporary_name
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

_NOT_IN_MAPPING = ("mirror", "limit", "max_reject_rate", "include", "exclude")
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

    files: tuple[InputFile, ...]  # of standard input and pipes, `path` is a path in the storage
    digests: tuple[str, ...]  # of each file: content, name and format
    mapping: str  # how records become documents: a file that is read with another mapping is another input
    skipped: tuple[IngestedFile, ...] = ()
    notes: tuple[str, ...] = ()  # what the user should know of the files
    num_reread: int = 0  # of the files to read: those that were ingested whole with another mapping
    known: tuple[IngestedFile, ...] = ()  # all that the source was ingested from before

    @property
    def plan(self) -> list[list[str]]:
        """The part of a run's identity that describes the files."""
        return [
            [shown_path(file), file.name, file.format, digest]
            for file, digest in zip(self.files, self.digests, strict=True)
        ]

    def ingested(self, unread: set[str]) -> list[IngestedFile]:
        """The files that were read whole: all except those whose path is in `unread`."""
        return [
            IngestedFile(shown_path(file), file.size_bytes, digest, self.mapping)
            for file, digest in zip(self.files, self.digests, strict=True)
            if shown_path(file) not in unread
        ]


def inputs_table(files: Iterable[IngestedFile]) -> pa.Table:
    """The table of an inputs file, schema `INPUTS`."""
    import pyarrow as pa

    from retrodb.format.schemas import INPUTS

    return pa.Table.from_pylist([vars(file) for file in files], schema=INPUTS)


def shown_path(file: InputFile) -> str:
    """The path as the user gave it."""
    return file.path if file.stream is None else file.stream


def find_inputs(view: View, inputs: Sequence[str], files_from: Sequence[str], params: IngestParams) -> Inputs:
    """The files to read. With `mirror` these are all files or none, because unchanged files tell which documents are missing.

    Raises:
        UsageError: no input file is given.
        InputError: an input does not exist or cannot be read.
    """
    files, notes = _expanded(view.storage, inputs, files_from, params)
    if not files:
        raise UsageError("no input files", remedy="Name files, folders or globs after the database.")
    digests = [identity(file_digest(on_disk(view.storage, f).disk_path), f.name, f.format) for f in files]
    mapping = identity({k: v for k, v in to_plain_object(params).items() if k not in _NOT_IN_MAPPING})
    all_inputs = Inputs(tuple(files), tuple(digests), mapping)
    known = _ingested_files(view, params.source)
    ingested = {file.digest: file for file in known if file.mapping == mapping}
    other = {file.digest for file in known} - ingested.keys()
    if params.mirror:
        entry = view.snapshot.entry(SourceEntry, params.source)
        is_same = entry is not None and entry.mirror == mirror_identity(all_inputs)
        ingested = ingested if is_same else {}
    new = [i for i, digest in enumerate(digests) if digest not in ingested]
    for i, file in enumerate(files):
        if file.stream is not None and i not in new:
            view.storage.delete(file.path)
    skipped = tuple(ingested[digest] for digest in digests if digest in ingested)
    return Inputs(
        files=tuple(files[i] for i in new),
        digests=tuple(digests[i] for i in new),
        mapping=mapping,
        skipped=skipped,
        notes=notes,
        num_reread=sum(digests[i] in other for i in new),
        known=tuple(known),
    )


def mirror_identity(inputs: Inputs) -> str:
    """Identifies the files that a source mirrors, in any order."""
    return identity(sorted(inputs.digests), inputs.mapping)


def keep_streams(storage: Storage, run: Run, inputs: Inputs) -> Inputs:
    """The inputs after standard input and pipes, if some are among them, were moved to the run that reads them."""
    files = list(inputs.files)
    for index, file in enumerate(files):
        if file.stream is not None:
            path = path_of("runs", run=run.id, file=f"spool/input-{index}")
            publish(storage, "runs", path, partial(os.replace, storage.local(file.path)))
            storage.delete(file.path)  # where a copy of it was moved
            files[index] = replace(file, path=path)
    return replace(inputs, files=tuple(files))


def on_disk(storage: Storage, file: InputFile) -> InputFile:
    """The file with a path that this machine can open: that of a copy, where the content is in the storage."""
    return file if file.stream is None else replace(file, raw_path=os.fsencode(storage.local(file.path)))


def on_any_machine(file: InputFile) -> InputFile:
    """The file as a task carries it: with no path of a copy on this machine. Relative paths stay: equal work has equal names."""
    return file if file.stream is None else replace(file, raw_path=None)


def _expanded(
    storage: Storage, inputs: Sequence[str], files_from: Sequence[str], params: IngestParams
) -> tuple[list[InputFile], tuple[str, ...]]:
    """The files, and what the user should know of them. Standard input and pipes are written to files first."""
    streams = {_spooled(storage, name): name for name in dict.fromkeys(inputs) if is_stream(name)}
    local = {name: str(storage.local(path)) for path, name in streams.items()}
    stored = {local[name]: path for path, name in streams.items()}
    names = [local.get(name, name) for name in inputs]
    found = find_files(names, files_from, params.format, include=params.include, exclude=params.exclude)
    files = [
        _with_stream(file, stored[path], streams) if (path := file.disk_path) in stored else file
        for file in found.files
    ]
    return files, found.notes


def _spooled(storage: Storage, stream: str) -> str:
    """The path in the storage of the content of standard input or of a pipe, whose name has the same suffix."""
    is_standard_input = stream == STANDARD_INPUT
    suffix = "" if is_standard_input else "".join(Path(escape_name(stream)).suffixes)
    path = f"{TEMPORARY}/{temporary_name(f'input{suffix}')}"
    with storage.stage(path) as local:
        if is_standard_input:
            spool(sys.stdin.buffer, local)
        else:
            with open_input(stream) as source:
                spool(source, local)
    return path


def _with_stream(file: InputFile, path: str, streams: Mapping[str, str]) -> InputFile:
    """The file with the content of a stream, as one of the storage."""
    name = streams[path]
    return replace(file, path=path, name=escape_name(os.path.basename(name)), raw_path=None, stream=escape_name(name))


def _ingested_files(view: View, source: str) -> list[IngestedFile]:
    """The files that a source was ingested from."""
    tables = [read_table(view.files.open(record)) for record in view.manifest.files("inputs", source)]
    return [IngestedFile(**row) for table in tables for row in table.to_pylist()]
