"""Where an export is: a folder of this machine, or a place in an object store.

A store has whole objects only. So the files of an export to a store are written to a folder in the cache of this machine, and
each is uploaded and removed here as soon as it is whole. A command that was killed continues with what this folder has. The card
is uploaded last and deleted first: there is no export without one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from retrodb.errors import MissingFileError, UsageError
from retrodb.export.card import CARD, ExportCard
from retrodb.export.folder import Destination, ExportFolder
from retrodb.export.positions import SpanRecord
from retrodb.export.record import RECORD, ExportRecord, WrittenFile, parse_export_record, read_record, write_record
from retrodb.format.json_codec import from_json, to_json
from retrodb.store.cached_lines import cache_folder
from retrodb.store.digest import identity
from retrodb.store.object_urls import is_object_url

if TYPE_CHECKING:
    from retrodb.store.object_storage import ObjectStorage

_POSITIONS = "retrodb-positions.*.bin"


class ExportPlace(Protocol):
    """A place for one export."""

    @property
    def name(self) -> str:
        """Absolute path, or URL."""
        ...

    @property
    def destination(self) -> Destination | None:
        """Of the finished files; None where they stay in the folder in which they are written."""
        ...

    def read(self, file: str) -> bytes | None:
        """A small file of the export; None where there is none."""
        ...

    def check_free(self) -> None:
        """Raises UsageError when something is there that is no export."""
        ...

    def new_folder(self) -> Path:
        """The folder in which the files of a new export are written."""
        ...

    def present_folder(self) -> Path:
        """The folder with the record of the export that is there, in which its files are written again."""
        ...

    def begin(self, folder: Path, files: Sequence[str]) -> None:
        """Prepare for the first file of a new export, which will have these files."""
        ...

    def begin_refresh(self, folder: Path, changed: Sequence[str]) -> None:
        """Prepare for the first of the changed files of the export that is there."""
        ...

    def publish(self, folder: Path) -> None:
        """Make what was written in a folder the export."""
        ...

    def discard(self, folder: Path) -> None:
        """Delete what was written for an export that nobody finishes."""
        ...


def export_place(out: str | Path) -> ExportPlace:
    """The place that a path or URL names.

    Raises:
        UsageError, MissingDependency: as of `ObjectStorage`.
    """
    return _StorePlace(str(out)) if is_object_url(str(out)) else _FolderPlace(Path(out))


def is_there(out: str) -> bool:
    """Whether there is something at a path, or an export at a URL."""
    return export_place(out).read(CARD) is not None if is_object_url(out) else Path(out).exists()


def read_card(place: ExportPlace) -> ExportCard:
    """The card of an export.

    Raises:
        UsageError: when there is no export.
        DamagedFileError: when its card cannot be read.
    """
    data = place.read(CARD)
    if data is None:
        raise UsageError("is no export of retrodb", where=place.name, remedy="Name the folder or URL of an export.")
    return from_json(ExportCard, data, where=f"{place.name}/{CARD}", remedy="Export again.")


class _FolderPlace:
    destination = None

    def __init__(self, out: Path) -> None:
        self._out = out
        self.name = str(out.absolute())

    def read(self, file: str) -> bytes | None:
        path = self._out / file
        return path.read_bytes() if path.is_file() else None

    def check_free(self) -> None:
        if self._out.exists() and not (self._out / CARD).is_file():
            raise _no_export(str(self._out))

    def new_folder(self) -> Path:
        return self._out.absolute().with_name(f".{self._out.name}.partial")

    def present_folder(self) -> Path:
        return self._out

    def begin(self, folder: Path, files: Sequence[str]) -> None:
        """Nothing: the folder is not the one of readers."""

    def begin_refresh(self, folder: Path, changed: Sequence[str]) -> None:
        """Nothing: readers keep the files that they have open."""

    def publish(self, folder: Path) -> None:
        if folder == self._out:
            return
        old = self._out.with_name(f".{self._out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self._out.exists():
            os.replace(self._out, old)
        os.replace(folder, self._out)
        shutil.rmtree(old, ignore_errors=True)

    def discard(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)


class _StorePlace:
    def __init__(self, url: str) -> None:
        from retrodb.store.object_storage import ObjectStorage

        self._storage = ObjectStorage(url.rstrip("/"))
        self.name = self._storage.url
        self.destination = _Uploads(self._storage)
        self._folder = cache_folder() / "exports" / identity("export", self.name)

    def read(self, file: str) -> bytes | None:
        try:
            return self._storage.read(file)
        except MissingFileError:
            return None

    def check_free(self) -> None:
        if self.read(CARD) is None and self.read(RECORD) is None and self._storage.list(""):
            raise _no_export(self.name)

    def new_folder(self) -> Path:
        return self._folder / "new"

    def present_folder(self) -> Path:
        """A folder with the record and the positions. What an interrupted refresh of the same export has written is kept."""
        folder, record = self._folder / "refresh", self.read(RECORD) or b""
        path = folder / RECORD
        if path.is_file() and path.read_bytes() == record:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if record:
            for name in parse_export_record(record, f"{self.name}/{RECORD}").positions:
                file = _POSITIONS.replace("*", name)
                shutil.copyfile(self._storage.local(file), folder / file)
            path.write_bytes(record)
        return folder

    def begin(self, folder: Path, files: Sequence[str]) -> None:
        """There is no card until the end. The record names what may be there, so that any later export deletes it."""
        self._storage.delete(CARD)
        earlier, begun = self._record(), read_record(folder)
        positions = {name: list[SpanRecord]() for name in (*earlier.positions, *begun.positions)}
        named = {**dict.fromkeys(files, WrittenFile(0, "", ())), **earlier.files}
        self._storage.write(RECORD, to_json(ExportRecord(positions=positions, files=named)))

    def begin_refresh(self, folder: Path, changed: Sequence[str]) -> None:
        """Until the end, the record names only files that do not change."""
        record = read_record(folder)
        files = {path: file for path, file in record.files.items() if path not in changed}
        if files != record.files:
            write_record(folder, replace(record, files=files))
            self._storage.write(RECORD, (folder / RECORD).read_bytes())

    def publish(self, folder: Path) -> None:
        self._storage.delete_all(sorted(_files_of(self._record()) - _files_of(read_record(folder))))
        for file in (*sorted(folder.glob(_POSITIONS)), folder / RECORD, folder / CARD):
            self._storage.upload(file.name, file)
        shutil.rmtree(folder)

    def _record(self) -> ExportRecord:
        """The record that is there; an empty one when there is none."""
        return parse_export_record(self.read(RECORD) or to_json(ExportRecord()), f"{self.name}/{RECORD}")

    def discard(self, folder: Path) -> None:
        if folder.is_dir():
            self._storage.delete_all(sorted(_files_of(ExportFolder(folder).record)))
            shutil.rmtree(folder, ignore_errors=True)


def _files_of(record: ExportRecord) -> set[str]:
    """The files that a record names."""
    return record.files.keys() | {_POSITIONS.replace("*", query_set) for query_set in record.positions}


class _Uploads:
    """Where the finished files of an export to a store go."""

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {path: stat.size_bytes for path, stat in self._storage.stats("").items()}

    def size_of(self, path: str) -> int | None:
        return self._sizes.get(path)

    def take(self, path: str, file: Path) -> None:
        size_bytes = file.stat().st_size
        self._storage.upload(path, file)
        self._sizes[path] = size_bytes
        file.unlink()

    def delete(self, path: str) -> None:
        self._storage.delete(path)
        self._sizes.pop(path, None)


def _no_export(where: str) -> UsageError:
    return UsageError("exists and is no export of retrodb", where=where, remedy="Choose another place.")
