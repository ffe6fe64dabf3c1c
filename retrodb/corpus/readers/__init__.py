"""One reader per input format, and the function that reads a split with them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO

from retrodb.corpus.document import Document, Fields, Limits, Reject, excerpt_of
from retrodb.corpus.file_names import escape_name
from retrodb.corpus.readers.arrow import read_arrow, read_parquet
from retrodb.corpus.readers.csv import read_csv, read_tsv
from retrodb.corpus.readers.dolma import read_dolma
from retrodb.corpus.readers.formats import detect_format
from retrodb.corpus.readers.html import read_html
from retrodb.corpus.readers.jsonl import read_json_array, read_jsonl
from retrodb.corpus.readers.open_file import OpenFile, Reader
from retrodb.corpus.readers.text import read_text
from retrodb.corpus.readers.warc import read_arc, read_warc
from retrodb.corpus.split import InputFile, Split
from retrodb.corpus.streams import HEAD_BYTES, ByteSource, InputStream, compression_of, open_input, read_first_bytes
from retrodb.errors import InputError, UnopenedInputError

READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json_array,
    "dolma": read_dolma,
    "parquet": read_parquet,
    "hf-arrow": read_arrow,
    "csv": read_csv,
    "tsv": read_tsv,
    "text": read_text,
    "markdown": read_text,
    "html": read_html,
    "warc": read_warc,
    "wet": read_warc,
    "arc": read_arc,
}
TAR_BLOCK = 512
UNREADABLE_FILE = "unreadable-file"
"""Reason of a reject that stands for a whole file."""


def read_split(split: Split, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """Every record of the split, in order.

    Raises:
        InputError: a file is cut off or damaged, or cannot be opened.
        MissingDependency: a format needs an extra that is not installed.
    """
    for file in split.files:
        yield from _read_file(file, split, fields, limits, None)


def read_split_leniently(
    split: Split, fields: Fields, limits: Limits, skipped: list[str] | None = None
) -> Iterator[Document | Reject]:
    """As `read_split`, but a file that cannot be read to its end becomes a reject, and the next file is read.

    The reason is "unreadable-file". The records before the damage come before that reject. A caller that keeps records drops
    those of the same file.

    Args:
        skipped: takes the paths of the binary files of an unknown format in archives.

    Raises:
        UnopenedInputError: a file that was there when the reading was planned cannot be opened here.
        MissingDependency: as `read_split`.
    """
    for file in split.files:
        try:
            yield from _read_file(file, split, fields, limits, skipped)
        except UnopenedInputError as error:
            what = f"{error.what}, although it was read when the work was planned"
            remedy = "Give all machines the same files, at the same paths, and run the same command again."
            raise UnopenedInputError(what, where=error.where, remedy=remedy) from error
        except InputError as error:
            is_whole = error.where in (file.path, escape_name(file.disk_path))
            message = error.what if is_whole else f"{error.where}: {error.what}"
            yield Reject(file.path, "file", UNREADABLE_FILE, excerpt_of(message))


def _read_file(
    file: InputFile, split: Split, fields: Fields, limits: Limits, skipped: list[str] | None
) -> Iterator[Document | Reject]:
    if file.is_tar:
        yield from _read_tar(file, split, fields, limits, [] if skipped is None else skipped)
    elif file.format not in READERS:
        yield Reject(file.path, "byte 0", "unknown-format", "")
    else:
        counts_bytes = file.compression == "none" and file.format != "parquet"
        with open_input(file.disk_path, file.compression, split.start if counts_bytes else 0) as stream:
            disk_path = file.disk_path if file.compression == "none" else None
            source = OpenFile(stream, file.path, file.name, disk_path, split.start, split.end)
            yield from READERS[file.format](source, fields, limits)


def _read_tar(
    file: InputFile, split: Split, fields: Fields, limits: Limits, skipped: list[str]
) -> Iterator[Document | Reject]:
    """The records of the members whose headers are in the split. Hidden members, links and devices are skipped."""
    start, end = split.start, split.end
    with open_input(file.disk_path, file.compression, start) as stream:
        packed = _PeekedStream(b"", stream)
        try:
            with tarfile.open(fileobj=io.BufferedReader(packed), mode="r|", encoding="utf-8") as archive:
                for member in archive:
                    if end is not None and start + member.offset >= end:
                        return
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is not None and not is_hidden(member.name):
                        yield from _read_member(content, escape_name(member.name), file, fields, limits, skipped)
        except tarfile.TarError as error:
            raise _damaged_tar(file, str(error)) from error
        # tarfile does not notice a cut between two members. A whole archive ends in blocks of zeros.
        while packed.read(HEAD_BYTES):
            pass
        if any(packed.tail):
            raise _damaged_tar(file, "it has no end mark")


def _damaged_tar(file: InputFile, reason: str) -> InputError:
    what = f"the tar archive is cut off or damaged ({reason})"
    return InputError(what, where=file.path, remedy="Download or write the file again.")


def _read_member(
    content: IO[bytes], name: str, file: InputFile, fields: Fields, limits: Limits, skipped: list[str]
) -> Iterator[Document | Reject]:
    path = f"{file.path}!{name}"
    head, member = _peek(content)
    compression = compression_of(head)
    head, stream = _peek(InputStream(member, compression, path))
    format_name = detect_format(head, name) if file.format == "auto" else file.format
    if format_name in READERS:
        yield from READERS[format_name](OpenFile(stream, path, name, None), fields, limits)
    else:
        skipped.append(path)


def is_hidden(name: str) -> bool:
    """Whether a part of a path below the user's input begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _peek(stream: ByteSource) -> tuple[bytes, IO[bytes]]:
    """The first bytes of a stream that cannot seek, and a stream of all its bytes."""
    head = read_first_bytes(stream)
    return head, io.BufferedReader(_PeekedStream(head, stream))


class _PeekedStream(io.RawIOBase):
    """The bytes that were already read, then the rest of the stream."""

    def __init__(self, head: bytes, stream: ByteSource) -> None:
        self._head, self._stream, self._position = head, stream, 0
        self.tail = b""  # the last bytes read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        block = self._head[: len(buffer)] or self._stream.read(len(buffer))
        self._head = self._head[len(block) :]
        buffer[: len(block)] = block
        self._position += len(block)
        self.tail = (self.tail + block[-TAR_BLOCK:])[-TAR_BLOCK:]
        return len(block)

    def tell(self) -> int:
        return self._position  # for error messages
