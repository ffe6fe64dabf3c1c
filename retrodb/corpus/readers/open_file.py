"""What a reader of a format gets, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from retrodb.corpus.document import Document, Fields, Limits, Reject, excerpt_of
from retrodb.corpus.streams import BLOCK_BYTES, ByteSource
from retrodb.errors import InputError


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One file, or one archive member, opened for reading."""

    stream: ByteSource  # decompressed; starts at byte `start` if `start` counts bytes
    path: str  # for rejects and errors: the file, with "!member" in an archive
    name: str  # path below the input that the user gave: the id of a document that is a whole file
    disk_path: str | None  # path of a file that is stored uncompressed and can be read at random positions
    start: int = 0  # as in `Split`
    end: int | None = None  # as in `Split`


class Reader(Protocol):
    """Reads one format: every record of the file becomes documents or a reject, in order."""

    def __call__(self, source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]: ...


def read_whole(source: OpenFile, limits: Limits) -> bytes | Reject:
    """All bytes of a file whose whole content is one record."""
    content = bytearray()
    while block := source.stream.read(BLOCK_BYTES):
        content += block
        if len(content) > limits.max_record_bytes:
            return Reject(source.path, "byte 0", "too-long", excerpt_of(content))
    return bytes(content)


def unreadable_file(path: str, format_name: str, error: Exception) -> InputError:
    """The error for a file that is damaged, or is not of its format."""
    what = f"not a readable {format_name} file ({error})"
    return InputError(what, where=path, remedy="Download or write the file again.")
