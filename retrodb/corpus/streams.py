"""The bytes of an input file: decompressed while they are read, and cut into delimited records of bounded size.

A compressed stream that is damaged or ends early raises `InputError`; it is never read as a shorter file. Memory is
bounded by one block, and for zstd also by the window of at most 128 MiB, whatever size a frame claims.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from retrodb.corpus.file_names import escape_name
from retrodb.corpus.input_sources import open_source
from retrodb.corpus.member_stream import MEMBER_MAGIC, MemberStream
from retrodb.errors import InputError, UnopenedInputError

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 64 << 10  # of a file, from which its format is detected
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8; some programs write it at the start of a file

_MAGIC_BYTES = 8  # more than the longest below
_MAGIC = {**MEMBER_MAGIC, "zstd": b"\x28\xb5\x2f\xfd"}
# A zstd stream may begin with a skippable frame (0x184D2A50 to 0x184D2A5F, little-endian). pzstd writes one.
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
COMPRESSION_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")


class ByteSource(Protocol):
    """A stream of bytes that readers read from."""

    def read(self, size: int = -1, /) -> bytes: ...


def compression_of(head: bytes) -> str:
    """The compression, from the first bytes of a file: "gzip", "zstd", "bz2", "xz" or "none"."""
    if head.startswith(_ZSTD_SKIPPABLE):
        return "zstd"
    return next((name for name, magic in _MAGIC.items() if head.startswith(magic)), "none")


class InputStream:
    """The decompressed bytes of a file, read forward.

    Args:
        source: the file, or the member of an archive.
        where: its name in errors.
    """

    def __init__(self, source: IO[bytes], compression: str, where: str) -> None:
        self._source, self._compression, self._where = source, compression, where
        self._stream = _decompressed(source, compression)

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; fewer only before the end; b"" at the end.

        Raises:
            InputError: the compressed bytes are damaged or end early.
        """
        # Decompressors raise OSError for damage (pyarrow, bz2), LZMAError (xz) and EOFError for an early end.
        try:
            return bytes(self._stream.read(size) if size >= 0 else self._stream.read())
        except (OSError, EOFError, lzma.LZMAError) as error:
            if self._compression == "none":
                raise InputError(str(error), where=self._where, remedy="Check the disk and the path.") from error
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        is_cut = isinstance(error, EOFError) or "runcated" in str(error)
        what = f"{self._compression} data {'is cut off' if is_cut else f'is damaged ({error})'}"
        offset = f" near compressed byte {self._source.tell()}"
        return InputError(what + offset, where=self._where, remedy="Download or write the file again.")

    def close(self) -> None:
        self._stream.close()
        self._source.close()

    def __enter__(self) -> InputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_input(path: str | Path, compression: str = "none", start: int = 0) -> InputStream:
    """The bytes of a file from the stored byte `start`.

    Raises:
        UnopenedInputError: the file cannot be opened.
    """
    try:
        source = open_source(path, buffered=compression != "none")
    except OSError as error:
        raise _cannot_open(path, error) from error
    if start:  # a pipe cannot seek
        source.seek(start)
    return InputStream(source, compression, escape_name(str(path)))


def open_decompressed(path: str | Path) -> InputStream:
    """The bytes of a file, with the compression that its first bytes show. The file may be a pipe.

    Raises:
        UnopenedInputError: the file cannot be opened.
    """
    try:
        source = open_source(path)
        assert isinstance(source, io.BufferedReader)
        head = source.peek(_MAGIC_BYTES)
    except OSError as error:
        raise _cannot_open(path, error) from error
    return InputStream(source, compression_of(head), escape_name(str(path)))


def read_first_bytes(stream: ByteSource) -> bytes:
    """The first bytes of a stream: `HEAD_BYTES`, fewer only if it is shorter."""
    head = b""
    while len(head) < HEAD_BYTES and (block := stream.read(HEAD_BYTES - len(head))):
        head += block
    return head


def _cannot_open(path: str | Path, error: OSError) -> UnopenedInputError:
    fault = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error.strerror or error})"
    return UnopenedInputError(fault, where=escape_name(str(path)), remedy="Check the path.")


class _Decompressor(ByteSource, Protocol):
    def close(self) -> None: ...


def _decompressed(source: IO[bytes], compression: str) -> _Decompressor:
    if compression == "none":
        return source
    if compression in MEMBER_MAGIC:
        return MemberStream(source, compression)
    import pyarrow as pa

    # zstandard's stream_reader does not notice that a file is cut off; pyarrow raises an error.
    stream: _Decompressor = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), compression)
    return stream


def delimited_records(
    stream: ByteSource, delimiter: bytes, max_bytes: int, *, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, bytes, is whole) of the records whose first byte is in [start, end), without the delimiter.

    The stream is positioned at `start`, which must be the first byte of a record (`record_start` finds one). For a record
    longer than `max_bytes`, the first `max_bytes` bytes and False are returned; its other bytes are skipped unbuffered.
    """
    offset = start  # of the first byte of `pending`
    pending, is_at_end = b"", False
    while not is_at_end:
        block = stream.read(max(BLOCK_BYTES, len(pending)))  # blocks double, so a long record is not copied n^2 times
        is_at_end = not block
        pending += block
        last = pending.rfind(delimiter)
        if last >= 0:
            for record in pending[:last].split(delimiter):
                if end is not None and offset >= end:
                    return
                yield offset, record[:max_bytes], len(record) <= max_bytes
                offset += len(record) + len(delimiter)
            pending = pending[last + len(delimiter) :]
        if end is not None and offset >= end:
            return
        if len(pending) > max_bytes:
            yield offset, pending[:max_bytes], False
            skipped, pending = _skip_record(stream, pending, delimiter)
            offset += skipped
    if pending:
        yield offset, pending, True


def _skip_record(stream: ByteSource, pending: bytes, delimiter: bytes) -> tuple[int, bytes]:
    """The number of bytes to the end of the next delimiter, and the bytes that were read after it."""
    skipped = 0
    while (delimiter_start := pending.find(delimiter)) < 0:
        keep = len(delimiter) - 1  # a delimiter may lie across two blocks
        skipped += max(len(pending) - keep, 0)
        block = stream.read(BLOCK_BYTES)
        if not block:
            return skipped + min(len(pending), keep), b""
        pending = (pending[-keep:] if keep else b"") + block
    stop = delimiter_start + len(delimiter)
    return skipped + stop, pending[stop:]


def record_start(path: str | Path, delimiter: bytes, offset: int) -> int:
    """The position of the first record that begins at or after `offset`, in an uncompressed file; its size if none does.

    The delimiter must not overlap itself. "--" does: the positions of records then depend on where the search starts.
    """
    if offset == 0:
        return 0
    position = max(offset - len(delimiter), 0)
    with open_input(path, start=position) as stream:
        pending = b""
        while block := stream.read(BLOCK_BYTES):
            pending += block
            delimiter_start = pending.find(delimiter)
            if delimiter_start >= 0:
                return position + delimiter_start + len(delimiter)
            keep = len(delimiter) - 1
            position += max(len(pending) - keep, 0)
            pending = pending[len(pending) - keep :] if keep else b""
        return position + len(pending)
