"""The files of an export and how they are brought up to date: the same for a new export, an interrupted one and a refresh.

A format describes each of its files as an `ExportFile`: a digest of everything that the content depends on, and a function that
writes it. A file whose digest is the recorded one is left alone. Every other file is written under a temporary name and renamed,
or changed in place if readers have it mapped. The record is rewritten after every file, so that an interrupted run continues with
the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from retrodb.engine.progress import Progress
from retrodb.export.positions import SpanRecord
from retrodb.format.json_codec import from_json, to_json
from retrodb.store.digest import digest_bytes, xxh3_file
from retrodb.store.whole_file import publish_whole, write_whole

RECORD = "retrodb-state.json"


@dataclass(frozen=True)
class ExportFile:
    """One file of an export."""

    path: str  # below the export's folder
    size_bytes: int  # estimate
    inputs_digest: Callable[[], str]  # of everything that the content depends on: equal digests mean equal bytes
    write: Callable[[Path], None]
    patch: Callable[[Path], None] | None = None  # changes the file in place, for readers that have it mapped
    must_reopen: bool = True  # whether a running reader sees the old content until it opens the file again


@dataclass(frozen=True)
class WrittenFile:
    """What the record of an export says about one file."""

    size_bytes: int
    state: str  # `inputs_digest` when it was written
    xxh3: str  # of the content, hexadecimal


@dataclass
class ExportRecord:
    """The files of an export, and the positions of its chunks."""

    chunks: list[SpanRecord] = field(default_factory=list)  # positions of the database's chunks
    files: dict[str, WrittenFile] = field(default_factory=dict)  # by path
    plan: str = ""  # identity of the export; "" when there is no record
    rows: list[SpanRecord] = field(default_factory=list)  # positions of the query set's chunks
    subset_rows: dict[str, list[SpanRecord]] = field(default_factory=dict)  # the same for further tables, by subset


@dataclass(frozen=True)
class FolderUpdate:
    """What an update of a folder did."""

    written: tuple[ExportFile, ...]
    num_unchanged: int  # files that were left alone
    size_bytes: int  # of all files now


class ExportFolder:
    """A folder with the record of its files."""

    def __init__(self, path: Path, record: ExportRecord | None = None) -> None:
        self.path = path
        self.record = record or ExportRecord()

    @classmethod
    def read(cls, path: Path) -> ExportFolder:
        """The folder with its record, which is empty when there is none.

        Raises:
            DamagedFileError: when the record cannot be read.
        """
        if not (path / RECORD).is_file():
            return cls(path)
        content = (path / RECORD).read_bytes()
        return cls(path, from_json(ExportRecord, content, where=str(path / RECORD), remedy="Export again."))

    def outdated(self, files: Sequence[ExportFile]) -> list[ExportFile]:
        """The files that are missing, or were written from other inputs."""
        return [file for file in files if not self._is_current(file)]

    def abandoned(self, files: Sequence[ExportFile]) -> list[str]:
        """The recorded paths that no file has any more, because all of its rows are deleted."""
        return sorted(set(self.record.files) - {file.path for file in files})

    def update(self, files: Sequence[ExportFile], progress: Progress) -> FolderUpdate:
        """Write the outdated files and remove the abandoned ones."""
        outdated = self.outdated(files)
        with progress.stage("export", sum(file.size_bytes for file in outdated), "B") as bar:
            for file in outdated:
                self._write(file)
                bar.advance(file.size_bytes)
        for path in self.abandoned(files):
            (self.path / path).unlink(missing_ok=True)
            del self.record.files[path]
        self.save()
        size = sum(written.size_bytes for written in self.record.files.values())
        return FolderUpdate(tuple(outdated), len(files) - len(outdated), size)

    def save(self) -> None:
        """Write the record."""
        write_whole(self.path / RECORD, to_json(self.record))

    def _is_current(self, file: ExportFile) -> bool:
        written = self.record.files.get(file.path)
        path = self.path / file.path
        return (
            written is not None
            and path.is_file()
            and path.stat().st_size == written.size_bytes
            and written.state == file.inputs_digest()
        )

    def _write(self, file: ExportFile) -> None:
        path = self.path / file.path
        digest = file.inputs_digest()
        if file.patch and file.path in self.record.files and path.is_file():
            file.patch(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.partial")
            file.write(temporary)
            publish_whole(temporary, path)
        self.record.files[file.path] = WrittenFile(path.stat().st_size, digest, xxh3_file(path).hex())
        self.save()


def fixed_file(path: str, content: bytes) -> ExportFile:
    """A file whose content is known already."""

    def write(target: Path) -> None:
        target.write_bytes(content)

    return ExportFile(path, len(content), lambda: digest_bytes(content).sha256.hex(), write)


def json_file(path: str, value: object) -> ExportFile:
    """A JSON file of plain values or dataclasses."""
    return fixed_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))
