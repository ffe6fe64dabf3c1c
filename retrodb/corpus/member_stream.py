"""Files of compressed members, one after the other: gzip, bz2 and xz."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Protocol

MEMBER_MAGIC = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00"}
"""The first bytes of a member, by compression."""

_BLOCK_BYTES = 128 << 10  # read from the file at a time


class _MemberDecoder(Protocol):
    """Decompresses one member of a file: a `bz2.BZ2Decompressor` and its like."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipDecoder:
    """`zlib.decompressobj` with the methods of `bz2.BZ2Decompressor`."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max(max_length, 0))


_MEMBER_DECODERS: dict[str, Callable[[], _MemberDecoder]] = {
    "gzip": _GzipDecoder,
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}


class MemberStream:
    """The content of a file of compressed members, one after the other, with zero bytes after each.

    The modules gzip, bz2 and lzma of the standard library differ in what they do with bytes after the first member: some
    ignore all that is not a member, which may be a damaged one. Here, as in the programs gzip and xz, only zeros are
    ignored: tapes and block devices pad with them.
    """

    def __init__(self, source: IO[bytes], compression: str) -> None:
        self._source, self._new_decoder = source, _MEMBER_DECODERS[compression]
        self._magic = MEMBER_MAGIC[compression]
        self._decoder: _MemberDecoder | None = None
        self._pending = b""  # bytes that were read from the file, and not yet given to a decoder

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, but at least one before the end. Raises OSError, LZMAError or EOFError for damage."""
        if size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        while size > 0:
            if self._decoder is None and not self._next_member():
                return b""
            decoder = self._decoder
            if decoder is None:  # for the type checker
                return b""
            if decoder.needs_input and not self._pending and not self._fill():
                raise EOFError("the last member has no end")
            data, self._pending = (self._pending, b"") if decoder.needs_input else (b"", self._pending)
            try:
                content = decoder.decompress(data, size)
            except zlib.error as error:
                raise OSError(str(error)) from error
            if decoder.eof:
                self._pending = decoder.unused_data + self._pending
                self._decoder = None
            if content:
                return content
        return b""

    def close(self) -> None:
        self._source.close()

    def _next_member(self) -> bool:
        self._pending = self._pending.lstrip(b"\0")
        while len(self._pending) < len(self._magic):
            if not self._fill():
                break
            self._pending = self._pending.lstrip(b"\0")
        if not self._pending:
            return False
        if not self._pending.startswith(self._magic[: len(self._pending)]):
            raise OSError("bytes after the end are neither zeros nor compressed")
        self._decoder = self._new_decoder()
        return True

    def _fill(self) -> bool:
        block = self._source.read(_BLOCK_BYTES)
        self._pending += block
        return bool(block)
