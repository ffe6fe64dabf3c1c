"""Bytes of an input file, decompressed as they are read, and cut into delimited records of bounded size.

A compressed stream that ends early, or is damaged, raises `InputError`; it never reads as a shorter file. Memory is
bounded by the block (and, for zstd, by the window, at most 128 MiB), whatever a frame claims to expand to.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from retrodb.errors import InputError

BLOCK_BYTES = 1 << 20

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
}
# A zstd stream may begin with a skippable frame (0x184D2A50 to 0x184D2A5F, little-endian), as pzstd writes it.
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
COMPRESSION_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")


class ByteSource(Protocol):
    """What the readers read from."""

    def read(self, size: int = -1, /) -> bytes: ...


def compression_of(head: bytes) -> str:
    """The compression that a file's first bytes show: "gzip", "zstd", "bz2", "xz" or "none"."""
    if head.startswith(_ZSTD_SKIPPABLE):
        return "zstd"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "none")


class InputStream:
    """A file's decompressed bytes, read forward.

    Args:
        source: the file, or an archive's member.
        where: how errors name it.
    """

    def __init__(self, source: IO[bytes], compression: str, where: str) -> None:
        self._source, self._compression, self._where = source, compression, where
        self._stream: Any = _decompressed(source, compression)

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, fewer only at the end (where b"" follows).

        Raises:
            InputError: the compressed bytes end early or are damaged.
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
        return InputError(what + offset, where=self._where, remedy="Fetch or write the file again.")

    def close(self) -> None:
        self._stream.close()
        self._source.close()

    def __enter__(self) -> InputStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_input(path: str | Path, compression: str = "none", start: int = 0) -> InputStream:
    """The bytes of a file from byte `start` (of the file as it is stored) on.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        source = open(path, "rb", buffering=0 if compression == "none" else -1)  # noqa: SIM115 - the stream closes it
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(path), remedy="Check the path.") from error
    source.seek(start)
    return InputStream(source, compression, str(path))


def _decompressed(source: IO[bytes], compression: str) -> Any:
    if compression == "none":
        return source
    if compression == "bz2":
        return bz2.BZ2File(source)  # pyarrow's bz2 fails on an empty member in the middle
    if compression == "xz":
        return lzma.LZMAFile(source)
    import pyarrow as pa

    # zstandard's stream_reader ends silently where the file is cut; pyarrow raises.
    return pa.CompressedInputStream(pa.PythonFile(source, mode="r"), compression)


def delimited_records(
    stream: ByteSource, delimiter: bytes, max_bytes: int, *, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, bytes, is whole) of the records whose first byte lies in [start, end), without the delimiter.

    The stream stands at `start`; for a start above 0 that must be the first byte of a record (`record_start` finds it).
    A record longer than `max_bytes` comes as its first bytes with False; the rest of it is passed over unbuffered.
    """
    offset = start  # of the first byte of `pending`
    pending, is_at_end = b"", False
    while not is_at_end:
        block = stream.read(max(BLOCK_BYTES, len(pending)))  # doubling: a long record is not copied n^2 times
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
    """Bytes up to and with the next delimiter, and what was read after it."""
    skipped = 0
    while (found := pending.find(delimiter)) < 0:
        keep = len(delimiter) - 1  # a delimiter may straddle two blocks
        skipped += max(len(pending) - keep, 0)
        block = stream.read(BLOCK_BYTES)
        if not block:
            return skipped + min(len(pending), keep), b""
        pending = (pending[-keep:] if keep else b"") + block
    stop = found + len(delimiter)
    return skipped + stop, pending[stop:]


def record_start(path: str | Path, delimiter: bytes, offset: int) -> int:
    """The first byte, at or after `offset`, that begins a record of an uncompressed file; its size if there is none.

    The delimiter must not overlap itself ("--" does: where records begin then depends on where one begins to look).
    """
    if offset == 0:
        return 0
    position = max(offset - len(delimiter), 0)
    with open_input(path, start=position) as stream:
        pending = b""
        while block := stream.read(BLOCK_BYTES):
            pending += block
            found = pending.find(delimiter)
            if found >= 0:
                return position + found + len(delimiter)
            keep = len(delimiter) - 1
            position += max(len(pending) - keep, 0)
            pending = pending[len(pending) - keep :] if keep else b""
        return position + len(pending)
