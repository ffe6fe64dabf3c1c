"""What every reader of a format is given, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from retrodb.corpus.document import Document, Fields, Limits, Reject, excerpt_of
from retrodb.corpus.streams import ByteSource
from retrodb.errors import InputError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file, or one archive member, opened for reading."""

    stream: ByteSource  # decompressed; stands at byte `start` where that counts bytes
    path: str  # for rejects and errors: the file, with "!member" in an archive
    name: str  # path below what the user gave: the id of a document that is a whole file
    file: str | None  # the path on disk when the file is stored as it is read: such a file can be read at random
    start: int = 0  # as in `Split`
    end: int | None = None  # as in `Split`


class Reader(Protocol):
    """Reads one format: every record of the source becomes documents or a reject, in order."""

    def __call__(self, source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]: ...


def read_capped(source: SourceFile, limits: Limits) -> bytes | Reject:
    """All bytes of a source whose whole content is one record."""
    content = bytearray()
    while block := source.stream.read(1 << 20):
        content += block
        if len(content) > limits.max_record_bytes:
            return Reject(source.path, "byte 0", "too-long", excerpt_of(content))
    return bytes(content)


def damaged(source: SourceFile, format_name: str, error: Exception) -> InputError:
    """The error for a container format that cannot be read on."""
    return InputError(
        f"not a readable {format_name} file ({error})", where=source.path, remedy="Fetch or write the file again."
    )
