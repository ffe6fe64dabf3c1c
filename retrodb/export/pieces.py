"""The files of an export, and bringing them up to date: the same for a new export, an interrupted one and a refresh.

A format describes each of its files as a piece: what its content follows from (its *state*), and how it is written. A piece
whose state is the one that was recorded when it was written is left alone; every other one is written beside its place and
renamed, or changed where it lies if readers have it mapped. The record is rewritten after every piece, so that whoever is
interrupted goes on with the next one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from retrodb.engine.progress import Progress
from retrodb.errors import DamagedFileError
from retrodb.store.digest import digest_bytes, xxh3_file

STATE = "retrodb-state.json"


@dataclass(frozen=True)
class Piece:
    """One file of an export."""

    path: str  # below the export's folder
    size_bytes: int  # estimate
    state: Callable[[], str]  # digest of all that its content follows from: equal states are equal bytes
    write: Callable[[Path], None]
    patch: Callable[[Path], None] | None = None  # instead of a new file: change it in place, for readers that map it
    must_reopen: bool = True  # whether a running reader goes on seeing what the file held before


@dataclass(frozen=True)
class Brought:
    """What bringing an export up to date did."""

    written: tuple[Piece, ...]
    kept: int  # files that were left alone
    size_bytes: int  # of all files now


class ExportFolder:
    """A folder with the record of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {"files": {}}

    @classmethod
    def read(cls, path: Path) -> ExportFolder:
        """The folder with its record; with an empty one when none is there.

        Raises:
            DamagedFileError: when the record is no JSON.
        """
        folder = cls(path)
        if (path / STATE).is_file():
            try:
                folder.record = orjson.loads((path / STATE).read_bytes())
            except orjson.JSONDecodeError as error:
                raise DamagedFileError(
                    "the record of the export is damaged", where=str(path / STATE), remedy="Export again."
                ) from error
        return folder

    def outdated(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces whose file is not there, or has another state than is wanted."""
        return [piece for piece in pieces if not self._is_current(piece)]

    def abandoned(self, pieces: Sequence[Piece]) -> list[str]:
        """The files that no piece is for any more: all of their rows are gone."""
        return sorted(set(self.record["files"]) - {piece.path for piece in pieces})

    def bring_up_to_date(self, pieces: Sequence[Piece], progress: Progress) -> Brought:
        """Write what is not as the pieces say, and remove files that none of them is for."""
        outdated = self.outdated(pieces)
        with progress.stage("export", sum(piece.size_bytes for piece in outdated), "B") as bar:
            for piece in outdated:
                self._bring(piece)
                bar.advance(piece.size_bytes)
        for path in self.abandoned(pieces):
            (self.path / path).unlink(missing_ok=True)
            del self.record["files"][path]
        self.save()
        size = sum(file["size_bytes"] for file in self.record["files"].values())
        return Brought(tuple(outdated), len(pieces) - len(outdated), size)

    def save(self) -> None:
        """Write the record."""
        write_whole(self.path / STATE, orjson.dumps(self.record, option=orjson.OPT_SORT_KEYS))

    def _is_current(self, piece: Piece) -> bool:
        recorded = self.record["files"].get(piece.path)
        file = self.path / piece.path
        return (
            recorded is not None
            and file.is_file()
            and file.stat().st_size == recorded["size_bytes"]
            and recorded["state"] == piece.state()
        )

    def _bring(self, piece: Piece) -> None:
        file = self.path / piece.path
        state = piece.state()
        if piece.patch and piece.path in self.record["files"] and file.is_file():
            piece.patch(file)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.partial")
            piece.write(temporary)
            _publish(temporary, file)
        digest = {"state": state, "size_bytes": file.stat().st_size, "xxh3": xxh3_file(file).hex()}
        self.record["files"][piece.path] = digest
        self.save()


def small_file(path: str, content: bytes) -> Piece:
    """A piece whose content is known already."""

    def write(file: Path) -> None:
        file.write_bytes(content)

    return Piece(path, len(content), lambda: digest_bytes(content).sha256.hex(), write)


def json_file(path: str, value: object) -> Piece:
    """A piece of JSON."""
    return small_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that a reader finds the old or the new one, whole."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data)
    _publish(temporary, path)


def _publish(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
