"""The body of an HTTP response without its transfer and content encodings."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

from retrodb.corpus.document import Limits, RecordError

UNKNOWN_ENCODING = "unknown-encoding"
_NO_ENCODING = ("", "identity", "none", "utf-8")  # the last two are not encodings, but servers write them


def decoded_body(body: bytes, headers: Mapping[str, str], limits: Limits) -> bytes:
    """The body that the server encoded.

    Crawlers often store a decoded body with its old headers. So a body without the signature of its encoding is kept if it
    is text.

    Args:
        headers: by lower-case name.

    Raises:
        RecordError: "unknown-encoding", the body cannot be decoded, or needs a package that is not installed; "truncated",
            its encoded form is cut off; or "too-long".
    """
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _dechunked(body)
    encodings = [name.strip() for name in headers.get("content-encoding", "").lower().split(",")]
    for encoding in reversed([name for name in encodings if name not in _NO_ENCODING]):
        body = _decoded(body, encoding, limits.max_record_bytes)
    return body


def _decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    reason = UNKNOWN_ENCODING
    content = None if body else b""
    if body and encoding in _DECODERS:
        try:
            content = _DECODERS[encoding](body, max_bytes + 1)
        except EOFError:
            reason = "truncated"
        except (ValueError, OSError, zlib.error, ImportError):
            pass
    if content is None:
        if _is_text(body):  # it is stored decoded
            return body
        raise RecordError(reason)
    if len(content) > max_bytes:
        raise RecordError("too-long")
    return content


def _is_text(body: bytes) -> bool:
    """Whether a body is not encoded: text has no NUL, and few bytes that are control characters."""
    head = body[:4096]
    controls = sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\f\r\x1b")
    return controls * 50 <= len(head)


def _inflate(body: bytes, max_bytes: int, window: int) -> bytes:
    decoder = zlib.decompressobj(window)
    content = decoder.decompress(body, max_bytes)
    if not decoder.eof and len(content) < max_bytes:
        raise EOFError
    return content


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    return _inflate(body, max_bytes, 16 + zlib.MAX_WBITS)


def _deflate(body: bytes, max_bytes: int) -> bytes:
    """RFC 9110 means the zlib format. Some servers send a raw deflate stream, which browsers accept too."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS, 16 + zlib.MAX_WBITS):
        try:
            return _inflate(body, max_bytes, window)
        except zlib.error:
            continue
    raise ValueError("not deflate")


def _brotli(body: bytes, max_bytes: int) -> bytes:
    """Brotli has no signature: text is almost never a valid stream, so decoding decides."""
    import brotli

    decoder = brotli.Decompressor()
    parts: list[bytes] = []
    size = 0
    pending = body
    try:
        while size < max_bytes and not decoder.is_finished():
            part = decoder.process(pending, output_buffer_limit=1 << 20)
            pending = b""
            if not part and decoder.can_accept_more_data():
                raise EOFError
            parts.append(part)
            size += len(part)
    except brotli.error as error:
        raise ValueError(str(error)) from error
    return b"".join(parts)


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:  # raises OSError if the stream is cut off
        return bytes(stream.read(max_bytes))


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _unzstd,
}


def _dechunked(body: bytes) -> bytes:
    """The joined parts of a chunked body; the body itself if it is not chunked."""
    parts: list[bytes] = []
    position = 0
    while True:
        line_end = body.find(b"\r\n", position)
        try:
            size = int(body[position:line_end].split(b";")[0], 16) if line_end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0 or (not parts and size > len(body)):
            return b"".join(parts) if parts else body
        if size == 0:
            return b"".join(parts)
        parts.append(body[line_end + 2 : line_end + 2 + size])
        position = line_end + 2 + size + 2
