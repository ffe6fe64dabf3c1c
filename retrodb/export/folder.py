"""The folder of an export and how its files are brought up to date: the same for a new export, an interrupted one and a refresh.

A file whose recorded digest is that of its inputs is left alone. Every other file is written under a temporary name and renamed
when all of its pieces are there, or changed in place if readers have it mapped. Each finished piece and file is a line of the
log, so that an interrupted run continues with the pieces that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from retrodb.export.export_file import ExportFile, state_of_pieces
from retrodb.export.record import (
    LogLine,
    RecordLog,
    WrittenFile,
    WrittenPiece,
    read_record,
    write_record,
)
from retrodb.store.whole_file import publish_whole, sync_file


@dataclass(frozen=True)
class PieceToWrite:
    """A piece that a task has to write."""

    file: ExportFile
    number: int
    target: Path  # the file to write it into


PieceWriter = Callable[[Sequence[PieceToWrite]], Iterable[tuple[PieceToWrite, WrittenPiece]]]
"""Writes pieces in any order, and gives each as soon as it is written."""


class Destination(Protocol):
    """Where finished files go that do not stay in the folder in which they are written."""

    def size_of(self, path: str) -> int | None:
        """The size of a file in bytes; None where there is none."""
        ...

    def take(self, path: str, file: Path) -> None:
        """Take a finished file away."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        ...


@dataclass(frozen=True)
class FolderUpdate:
    """What an update of a folder did."""

    num_files: int  # of all files now
    size_bytes: int  # of all files now


class ExportFolder:
    """A folder with the record of its files.

    Raises:
        DamagedFileError: when the record or its log cannot be read.
    """

    def __init__(self, path: Path, destination: Destination | None = None) -> None:
        """
        Args:
            destination: of finished files; None leaves them in the folder.
        """
        self.path, self._destination = path, destination
        self.record = read_record(path)
        self._log = RecordLog(path)
        self._pieces: dict[str, dict[int, WrittenPiece]] = {}  # of files that are not finished
        self._runs: dict[str, str] = {}  # path -> the run that wrote these
        for line in self._log.lines():
            self._apply(line)

    def outdated(self, files: Sequence[ExportFile], states: Mapping[str, str]) -> list[ExportFile]:
        """The files that are missing, or were written from other inputs than `states`, path -> digest, has."""
        return [file for file in files if states[file.path] and not self._is_current(file.path, states[file.path])]

    def unwritten(self, files: Sequence[ExportFile]) -> list[ExportFile]:
        """The files that are missing, whatever the others were written from."""
        return [file for file in files if not self._is_whole(file.path)]

    def abandoned(self, states: Mapping[str, str]) -> list[str]:
        """The recorded paths that no file has any more, because all of its rows are deleted."""
        return sorted(path for path in self.record.files if not states.get(path))

    def update(self, run: str, files: Sequence[ExportFile], write: PieceWriter) -> None:
        """Write files. What an earlier attempt of the same run has written is kept.

        Args:
            run: identity of the update: equal for equal states of all files.
        """
        pending = {file.path: file for file in files}
        pieces = [piece for file in files for piece in self._begin(run, file)]
        for path in [path for path, file in pending.items() if self._is_complete(file)]:
            self._finish(pending.pop(path))
        for piece, written in write(pieces):
            self._finish_piece(run, piece, written)
            if self._is_complete(piece.file):
                self._finish(pending.pop(piece.file.path))

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files."""
        for path in paths:
            if self._destination is None:
                (self.path / path).unlink(missing_ok=True)
            else:
                self._destination.delete(path)
            self._append(LogLine(path))

    def finish(self) -> FolderUpdate:
        """Fold the log into the record."""
        write_record(self.path, self.record)
        self._log.remove()
        written = self.record.files.values()
        return FolderUpdate(len(written), sum(file.size_bytes for file in written))

    def _append(self, line: LogLine) -> None:
        self._log.append(line)
        self._apply(line)

    def _apply(self, line: LogLine) -> None:
        if line.run and line.piece is None:
            self._runs[line.path], self._pieces[line.path] = line.run, {}
            return
        if line.piece is not None:
            if self._runs.get(line.path) != line.run:
                self._runs[line.path], self._pieces[line.path] = line.run, {}
            self._pieces[line.path][line.number] = line.piece
            return
        self._pieces.pop(line.path, None)
        self._runs.pop(line.path, None)
        if line.file is None:
            self.record.files.pop(line.path, None)
        else:
            self.record.files[line.path] = line.file

    def _is_current(self, path: str, state: str) -> bool:
        return self._is_whole(path) and self.record.files[path].state == state

    def _is_whole(self, path: str) -> bool:
        written = self.record.files.get(path)
        return written is not None and self._size_of(path) == written.size_bytes

    def _size_of(self, path: str) -> int | None:
        """The size of a finished file in bytes; None where there is none."""
        if self._destination is not None:
            return self._destination.size_of(path)
        file = self.path / path
        return file.stat().st_size if file.is_file() else None

    def _begin(self, run: str, file: ExportFile) -> list[PieceToWrite]:
        """The pieces of a file that are not written yet, and the file that they are written into."""
        target = self._target(file)
        if self._runs.get(file.path) != run or not target.is_file():
            if file.prepare is not None and target != self.path / file.path:
                file.prepare(target)
                sync_file(target)
            self._append(
                LogLine(file.path, run)
            )  # never prepared again: tasks may have written pieces that no line names yet
        done = self._pieces[file.path]
        return [PieceToWrite(file, number, target) for number in range(len(file.pieces)) if number not in done]

    def _target(self, file: ExportFile) -> Path:
        path, written = self.path / file.path, self.record.files.get(file.path)
        if file.is_patched and written and path.is_file() and path.stat().st_size == file.size_bytes:
            return path
        return path.with_name(f".{path.name}.partial")

    def _is_complete(self, file: ExportFile) -> bool:
        return len(self._pieces.get(file.path, ())) == len(file.pieces)

    def _finish_piece(self, run: str, piece: PieceToWrite, written: WrittenPiece) -> None:
        self._append(LogLine(piece.file.path, run, piece.number, written))

    def _finish(self, file: ExportFile) -> None:
        pieces = [self._pieces[file.path][number] for number in range(len(file.pieces))]
        state, path, target = (
            state_of_pieces([piece.state for piece in pieces]),
            self.path / file.path,
            self._target(file),
        )
        if not state:  # nothing to write
            self._append(LogLine(file.path))
            return
        if file.join is not None:
            file.join(target)
        size_bytes = target.stat().st_size
        if self._destination is not None:
            self._destination.take(file.path, target)
        elif target != path:
            publish_whole(target, path)
        written = WrittenFile(size_bytes, state, tuple(piece.xxh3 for piece in pieces))
        self._append(LogLine(file.path, file=written))
