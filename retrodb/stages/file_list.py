"""Files of a run that many tasks read: a list in a file of its own, so that no payload repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles


@dataclass(frozen=True)
class FilesOfRun:
    """Records of files, in an order that means something to their reader."""

    files: tuple[FileRecord, ...]


def publish_file_list(storage: Storage, run: str, name: str, files: Sequence[FileRecord]) -> FileRecord:
    """Write a list into the folder of a run, and give the record of its file."""
    path = path_of("runs", run=run, file=f"lists/{name}.json")
    return publish(storage, "runs", path, partial(_write, data=to_json(FilesOfRun(tuple(files)))))


def _write(local: Path, data: bytes) -> None:
    local.write_bytes(data)


@lru_cache(maxsize=4)
def read_file_list(storage: Storage, file: FileRecord) -> tuple[FileRecord, ...]:
    """The records of a list. Raises DamagedFileError when its bytes are not those of its record."""
    data = VerifiedFiles(storage).open(file).read_bytes()
    return from_json(FilesOfRun, data, where=file.path).files
