"""What an export records about itself: positions, files, and a log of what is finished while it is written.

The log has one line of JSON for each finished piece and file, so that work of any size is recorded by appending. A kill can
tear its last line, which is then ignored. At the end of an update the log is folded into the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retrodb.errors import DamagedFileError
from retrodb.export.positions import SpanRecord
from retrodb.format.json_codec import from_json, to_json
from retrodb.store.whole_file import write_whole

RECORD = "retrodb-state.json"
LOG = "retrodb-log.jsonl"


@dataclass(frozen=True)
class WrittenPiece:
    """One piece of a file."""

    state: str  # digest of everything that its content depends on, when it was written
    xxh3: str  # of the content, hexadecimal


@dataclass(frozen=True)
class WrittenFile:
    """What the record of an export says about one file."""

    size_bytes: int
    state: str  # of all pieces, when they were written
    xxh3: tuple[str, ...]  # of the content of each piece, hexadecimal


@dataclass
class ExportRecord:
    """The files of an export, and the positions of its chunks."""

    plan: str = ""  # identity of the export; "" when there is no record
    positions: dict[str, list[SpanRecord]] = field(default_factory=dict)  # by query set
    files: dict[str, WrittenFile] = field(default_factory=dict)  # by path


@dataclass(frozen=True)
class LogLine:
    """One finished thing: the beginning of a file (a run without a piece), a piece, a whole file, or the removal of a file."""

    path: str
    run: str = ""  # that wrote the piece
    number: int = -1  # of the piece
    piece: WrittenPiece | None = None
    file: WrittenFile | None = None  # None removes the file where there is no piece either


class RecordLog:
    """The log next to a record."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG
        self._end = 0  # of the complete lines that were read or written

    def lines(self) -> Iterator[LogLine]:
        """The lines, without a torn last one.

        Raises:
            DamagedFileError: for another line that cannot be read.
        """
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                self._end += len(line)
                where = f"{self._path}, line {number}"
                yield from_json(LogLine, line, where=where, remedy="Delete this file and run the command again.")

    def append(self, line: LogLine) -> None:
        """Add one line after those that `lines` gave: a torn last one is overwritten."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.seek(self._end)
            file.truncate()
            file.write(to_json(line) + b"\n")
            self._end = file.tell()

    def remove(self) -> None:
        """Delete the log, after the record has all that it says."""
        self._path.unlink(missing_ok=True)
        self._end = 0


def read_record(folder: Path) -> ExportRecord:
    """The record of a folder without its log; an empty one when there is none.

    Raises:
        DamagedFileError: when it cannot be read.
    """
    path = folder / RECORD
    return parse_export_record(path.read_bytes(), str(path)) if path.is_file() else ExportRecord()


def parse_export_record(data: bytes, where: str) -> ExportRecord:
    """The record that some bytes are. Raises DamagedFileError."""
    return from_json(ExportRecord, data, where=where, remedy="Export again.")


def write_record(folder: Path, record: ExportRecord) -> None:
    """Write the record, whole."""
    write_whole(folder / RECORD, to_json(record))


def recorded_export(folder: Path) -> ExportRecord:
    """The record of an export that must have one.

    Raises:
        DamagedFileError: when it is missing or cannot be read.
    """
    record = read_record(folder)
    if not record.plan:
        what = "the record of the export is missing"
        raise DamagedFileError(what, where=str(folder / RECORD), remedy="Export again.")
    return record
