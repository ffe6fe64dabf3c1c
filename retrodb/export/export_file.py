"""The files of an export as a format describes them: pieces that tasks write, in any order and in any process.

A piece has a digest of everything that its content depends on, so that a piece with the recorded digest is left alone, and a
function that writes it. Arrays and other files of known size are made at their full size first. Then every piece writes its range
of bytes, one range of chunks after the other. Pieces of a text file are joined in the end. All other files have one piece, which
writes all of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import xxhash

from retrodb.format.arrays import AnyArray
from retrodb.store.digest import digest_bytes, identity, xxh3_file
from retrodb.store.whole_file import sync_file

_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class FilePiece:
    """A part of a file that one task writes."""

    size_bytes: int
    inputs_digest: Callable[[], str]  # equal digests mean equal bytes; "" when there is nothing to write
    write: Callable[[Path], str]  # writes it into the file at a path, and gives the xxh3 of its bytes


@dataclass(frozen=True)
class ExportFile:
    """One file of an export."""

    path: str  # below the export's folder
    pieces: Sequence[FilePiece]
    prepare: Callable[[Path], None] | None = None  # makes the file in which the pieces write their ranges
    join: Callable[[Path], None] | None = None  # makes the file from what the pieces wrote elsewhere
    is_patched: bool = False  # readers have it mapped: a refresh changes it in place
    must_reopen: bool = True  # whether a running reader sees the old content until it opens the file again
    is_fixed: bool = False  # small, and its content is known already

    @property
    def size_bytes(self) -> int:
        """Exact for a file of prepared size, otherwise an estimate."""
        return sum(piece.size_bytes for piece in self.pieces)


def whole_file(
    path: str,
    size_bytes: int,
    inputs_digest: Callable[[], str],
    write: Callable[[Path], object],
    *,
    must_reopen: bool = True,
) -> ExportFile:
    """A file of one piece, which `write(path)` makes; `size_bytes` is an estimate."""

    def write_and_digest(target: Path) -> str:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target)
        sync_file(target)
        return xxh3_file(target).hex()

    return ExportFile(path, [FilePiece(size_bytes, inputs_digest, write_and_digest)], must_reopen=must_reopen)


def fixed_file(path: str, content: bytes) -> ExportFile:
    """A small file whose content is known already."""

    def write(target: Path) -> str:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return digest_bytes(content).xxh3.hex()

    piece = FilePiece(len(content), lambda: digest_bytes(content).sha256.hex(), write)
    return ExportFile(path, [piece], is_fixed=True)


def json_file(path: str, value: object) -> ExportFile:
    """A JSON file of plain values or dataclasses."""
    return fixed_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))


@dataclass(frozen=True)
class TextPiece:
    """Some of the records of a text file."""

    size_bytes: int  # estimate
    inputs_digest: Callable[[], str]
    records: Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Delimiters:
    """What comes before the first record of a text file, between two, and after the last; `empty` is a file without records."""

    start: bytes
    between: bytes
    end: bytes
    empty: bytes


def text_file(path: str, pieces: Sequence[TextPiece], delimiters: Delimiters, scratch: Path) -> ExportFile:
    """A file of records of any length: its pieces are written to a folder of their own and joined in the end."""
    parts = [scratch / f"{path}.{number:06d}" for number in range(len(pieces))]

    def file_piece(piece: TextPiece, part: Path) -> FilePiece:
        def write(target: Path) -> str:
            del target
            with part.open("wb") as file:
                for number, record in enumerate(piece.records()):
                    file.write(delimiters.between + record if number else record)
            sync_file(part)
            return xxh3_file(part).hex()

        return FilePiece(piece.size_bytes, piece.inputs_digest, write)

    def join(target: Path) -> None:
        with_records = [part for part in parts if part.stat().st_size]
        with target.open("wb") as file:
            for number, part in enumerate(with_records):
                file.write(delimiters.between if number else delimiters.start)
                with part.open("rb") as records:
                    shutil.copyfileobj(records, file, _COPY_BYTES)
            file.write(delimiters.end if with_records else delimiters.empty)

    files = [file_piece(piece, part) for piece, part in zip(pieces, parts, strict=True)]
    return ExportFile(path, files, prepare=Path.touch, join=join)


@dataclass(frozen=True)
class FileRange:
    """Blocks of equally long rows that follow each other from an offset of a file."""

    offset: int  # bytes
    size_bytes: int
    blocks: Callable[[], Iterable[AnyArray]]


@dataclass(frozen=True)
class RangedPiece:
    """A piece that consists of ranges of a file."""

    inputs_digest: Callable[[], str]
    ranges: Sequence[FileRange]


def ranged_file(
    path: str, pieces: Sequence[RangedPiece], *, head: bytes = b"", is_patched: bool = False, must_reopen: bool = True
) -> ExportFile:
    """A file of known size, whose pieces cover everything after its first bytes, `head`.

    Args:
        is_patched: the file is not replaced but changed where its rows differ, each row with one write.
    """
    size = len(head) + sum(part.size_bytes for piece in pieces for part in piece.ranges)

    def prepare(target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.truncate(size)
            file.write(head)

    of_head = FilePiece(len(head), lambda: digest_bytes(head).sha256.hex(), lambda _: digest_bytes(head).xxh3.hex())
    return ExportFile(
        path,
        [of_head, *(_file_piece(piece, is_patched=is_patched) for piece in pieces)],
        prepare=prepare,
        is_patched=is_patched,
        must_reopen=must_reopen,
    )


def _file_piece(piece: RangedPiece, *, is_patched: bool) -> FilePiece:
    def write(target: Path) -> str:
        return write_ranges(target, piece.ranges, only_changes=is_patched)

    return FilePiece(sum(part.size_bytes for part in piece.ranges), piece.inputs_digest, write)


def write_ranges(path: Path, ranges: Sequence[FileRange], *, only_changes: bool = False) -> str:
    """Write ranges of an existing file, and wait for the disk. Gives the xxh3 of their bytes.

    Args:
        only_changes: write only rows that differ from the content of the file, each with one write.
    """
    digest = xxhash.xxh3_128()
    descriptor = os.open(path, os.O_RDWR)
    try:
        for part in ranges:
            offset = part.offset
            for block in part.blocks():
                rows = np.ascontiguousarray(block)
                digest.update(rows.data)
                _write_rows(descriptor, rows, offset, only_changes=only_changes)
                offset += rows.nbytes
            assert offset == part.offset + part.size_bytes, f"{path.name}: a range has another size than was planned"
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _write_rows(descriptor: int, rows: AnyArray, offset: int, *, only_changes: bool) -> None:
    if not rows.size:
        return
    if not only_changes:
        _write_all(descriptor, rows.data.cast("B"), offset)
        return
    old = np.frombuffer(os.pread(descriptor, rows.nbytes, offset), rows.dtype).reshape(rows.shape)
    changed = np.flatnonzero((rows != old).reshape(len(rows), -1).any(axis=1))
    for row in changed.tolist():
        _write_all(descriptor, rows[row : row + 1].data.cast("B"), offset + row * rows[row].nbytes)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:  # one call writes at most 2 GiB
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def state_of_pieces(states: Sequence[str]) -> str:
    """The digest of everything that a file depends on, from those of its pieces; "" when there is nothing to write."""
    if len(states) == 1:
        return states[0]
    return identity(list(states))
