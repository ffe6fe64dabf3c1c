"""The parts of input files that one task reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from retrodb.format.json_codec import JsonValue, from_plain, to_plain_object


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read, as `find_files` returns it."""

    path: str  # for people and reports: bytes that are not UTF-8 are escaped; of a stream, that of its content in the storage
    name: str  # path below the folder or glob of the user, escaped; the id of a document that is a whole file
    format: str  # a name of `READERS`, or "unknown"; for tar archives that of all members, or "auto"
    size_bytes: int  # as stored
    compression: str  # "none", "gzip", "zstd", "bz2" or "xz"
    is_tar: bool = False  # a tar archive of files
    raw_path: bytes | None = None  # the path in the file system, if it is another one
    stream: str | None = None  # "-", or the path of the pipe whose content was written to the storage

    @property
    def disk_path(self) -> str:
        """The path in the file system, to open the file."""
        return self.path if self.raw_path is None else os.fsdecode(self.raw_path)


@dataclass(frozen=True, slots=True)
class Split:
    """A unit of reading: some whole files, or a range of one."""

    files: tuple[InputFile, ...]  # several only if each is read whole
    start: int = 0  # first byte (JSON Lines, marked text, tar headers) or first row group (Parquet)
    end: int | None = None  # exclusive; None: the end of the file

    @property
    def size_bytes(self) -> int:
        """Stored bytes of this split, for progress; the size of the whole file if the range counts row groups."""
        whole = sum(file.size_bytes for file in self.files)
        return whole if self.files[0].format == "parquet" else min(self.end or whole, whole) - self.start

    def to_json(self) -> dict[str, JsonValue]:
        """The split as plain values. `from_json` is the inverse."""
        return to_plain_object(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Split:
        """The split of plain values that `to_json` made. Raises DamagedFileError for other values."""
        return from_plain(cls, values, where="a split of the input")
