"""Which part of which input files one task reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read, as `expand_inputs` found it."""

    path: str  # as the file system knows it
    name: str  # path below the folder or glob that was given; the id of a document that is a whole file
    format: str  # a name of `READERS`, or "unknown"; for archives of its members, "auto" when each shows its own
    size_bytes: int  # as stored
    compression: str  # "none", "gzip", "zstd", "bz2" or "xz"
    is_tar: bool = False  # a tar archive of files


@dataclass(frozen=True, slots=True)
class Split:
    """A unit of reading: some whole files, or a range of one."""

    files: tuple[InputFile, ...]  # several only when each is read whole
    start: int = 0  # first byte (JSON Lines, marked text, tar headers) or first row group (Parquet)
    end: int | None = None  # one past the last; None: to the end of the file

    @property
    def size_bytes(self) -> int:
        """Stored bytes this split covers, for progress; the whole file's when the range counts row groups."""
        whole = sum(file.size_bytes for file in self.files)
        return whole if self.files[0].format == "parquet" else min(self.end or whole, whole) - self.start

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Split:
        files = tuple(InputFile(**file) for file in value["files"])
        return cls(files, value["start"], value["end"])
