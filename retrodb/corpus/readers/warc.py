"""Web archives: WARC (with WET and WAT) and the older ARC.

Records are separated by their own headers and lengths, under every compression. A record that is cut off or has no
readable header becomes a reject, and reading continues at the next record. (fastwarc stops there without an error.)

Documents are `conversion` records (WET) and `resource` records of a text type, and `response` records of a text type with
a status of 2xx; HTML becomes text. Everything else (requests, metadata, revisits, images, scripts, error pages, the crawler's own
log and arguments) is not a document and is not counted. The id is the URL of the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from retrodb.corpus.document import Document, Fields, Limits, RecordError, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.html import is_charset, page_record
from retrodb.corpus.readers.http_body import decoded_body
from retrodb.corpus.readers.open_file import OpenFile
from retrodb.corpus.streams import BLOCK_BYTES, ByteSource

HTML_TYPES = ("text/html", "application/xhtml+xml")
WEB_SCHEMES = ("http", "https", "ftp", "ftps", "file", "gopher", "gemini")
TEXT_TYPES = (*HTML_TYPES, "text/plain")
MAX_LINE_BYTES = 64 << 10
MAX_HEADER_LINES = 1000


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """One record of an archive, before its content is read."""

    offset: int  # of its first byte, decompressed
    kind: str  # "response", "resource", "conversion", ...; "malformed", "truncated" or "too-long" if unreadable
    url: str | None  # of the page
    date: str | None  # as the archive writes it
    content_type: str  # of the record's own block
    content: bytes  # the block: for a response, HTTP headers and body


def read_warc(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a WARC, WET or WAT file (WAT has no text)."""
    return _documents(_warc_records(_LineReader(source.stream), limits), source, fields, limits)


def read_arc(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of an ARC file, version 1 or 2."""
    return _documents(_arc_records(_LineReader(source.stream), limits), source, fields, limits)


def _documents(
    records: Iterator[ArchiveRecord], source: OpenFile, fields: Fields, limits: Limits
) -> Iterator[Document | Reject]:
    for record in records:
        location = f"byte {record.offset}"
        if record.kind in ("malformed", "truncated", "too-long"):
            yield Reject(source.path, location, record.kind, excerpt_of(record.content))
            continue
        try:
            page = _page_of(record, limits)
        except RecordError as error:
            yield Reject(source.path, location, error.reason, excerpt_of(record.content))
            continue
        if page is not None:
            yield from documents_of(page, fields, limits, path=source.path, location=location, doc_id=record.url)


def _page_of(record: ArchiveRecord, limits: Limits) -> dict[str, object] | None:
    """The fields of a record that is a document; None if it is not one. Raises RecordError if it cannot be read."""
    content, content_type = record.content, record.content_type
    if record.kind == "response" and content.startswith(b"HTTP/"):
        status, headers, content = _http_parts(content)
        content_type = headers.get("content-type", "")
        if not 200 <= status < 300:
            return None
    elif record.kind not in ("conversion", "resource", "response") or _is_of_crawler(record):
        return None
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    if media_type not in TEXT_TYPES:
        return None
    if record.kind == "response" and record.content.startswith(b"HTTP/"):
        content = decoded_body(content, headers, limits)
    charset = parameters.lower().partition("charset=")[2].split(";")[0].strip(" \"'") or None
    page: dict[str, object] = (
        page_record(content, charset) if media_type in HTML_TYPES else {"text": _plain_text(content, charset)}
    )
    return {"id": record.url, "url": record.url, "date": record.date, "content_type": media_type, **page}


def _plain_text(content: bytes, charset: str | None) -> bytes | str:
    """The text in the encoding that the server named; the bytes, as UTF-8, if it named none or another than it sent."""
    try:
        return content.decode(charset) if charset and is_charset(charset) else content
    except UnicodeDecodeError:
        return content


def _http_parts(block: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers by lower-case name, body) of an HTTP response."""
    head, separator, body = block.partition(b"\r\n\r\n")
    if not separator:
        head, _, body = block.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")  # and not at U+0085, as splitlines does
    status = first.split(" ", 2)[1:2]
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(status[0]) if status and status[0].isdigit() else 0, headers, body


def _is_of_crawler(record: ArchiveRecord) -> bool:
    """Whether a crawler wrote the record about its own work, as its address shows.

    wget stores its log and its arguments as resources at "metadata://gnu.org/...". Others store screenshots and the text that
    they took from pages at "screenshot:...", "urn:text:...".
    """
    scheme, colon, _ = (record.url or "").partition(":")
    return record.kind == "resource" and bool(colon) and scheme.lower() not in WEB_SCHEMES


class _LineReader:
    """Reads a byte source by lines and by blocks of a given size, and knows its position."""

    def __init__(self, stream: ByteSource) -> None:
        self._stream, self._pending, self._used, self.offset = stream, b"", 0, 0

    def line(self) -> bytes:
        """The next line with its end, at most `MAX_LINE_BYTES` of it; b"" at the end."""
        while True:
            line_end = self._pending.find(b"\n", self._used, self._used + MAX_LINE_BYTES)
            if line_end >= 0:
                return self._take(line_end + 1 - self._used)
            if len(self._pending) - self._used >= MAX_LINE_BYTES or not self._fill():
                return self._take(min(MAX_LINE_BYTES, len(self._pending) - self._used))

    def block(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        while len(self._pending) - self._used < size and self._fill(size):
            pass
        return self._take(min(size, len(self._pending) - self._used))

    def skip(self, size: int) -> bool:
        """Skip `size` bytes without keeping them; whether there were that many."""
        while size > 0:
            passed = len(self.block(min(size, BLOCK_BYTES)))
            if passed == 0:
                return False
            size -= passed
        return True

    def _fill(self, size: int = 0) -> bool:
        block = self._stream.read(max(BLOCK_BYTES, size - (len(self._pending) - self._used)))
        self._pending, self._used = self._pending[self._used :] + block, 0
        return bool(block)

    def _take(self, size: int) -> bytes:
        taken = self._pending[self._used : self._used + size]
        self._used += size
        self.offset += size
        return taken


def _warc_records(lines: _LineReader, limits: Limits) -> Iterator[ArchiveRecord]:
    is_in_sync = True  # False after a malformed record, until the first line of the next record
    while True:
        offset = lines.offset
        first = lines.line()
        if not first:
            return
        if not first.startswith(b"WARC/"):
            if is_in_sync and first.strip():
                yield ArchiveRecord(offset, "malformed", None, None, "", first)
                is_in_sync = False
            continue
        is_in_sync = True
        headers = _warc_headers(lines)
        length = headers.get("content-length", "")
        url = headers.get("warc-target-uri", "").strip("<>") or None
        kind = headers.get("warc-type", "").lower()
        if not (length.isascii() and length.isdigit()) or not kind:
            yield ArchiveRecord(offset, "malformed", url, None, "", first)
            is_in_sync = False
            continue
        kind, content = _content(lines, int(length), kind, limits)
        yield ArchiveRecord(offset, kind, url, headers.get("warc-date"), headers.get("content-type", ""), content)


def _warc_headers(lines: _LineReader) -> dict[str, str]:
    """Headers by lower-case name, up to the blank line. An indented line continues the header before it."""
    headers: dict[str, str] = {}
    name = ""
    for _ in range(MAX_HEADER_LINES):
        line = lines.line()
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            break
        if text[0] in " \t" and name:
            headers[name] += " " + text.strip()
            continue
        name, _, value = text.partition(":")
        name = name.strip().lower()
        headers[name] = value.strip()
    return headers


def _content(lines: _LineReader, length: int, kind: str, limits: Limits) -> tuple[str, bytes]:
    """(kind, content) of a record of a given length; the kind is "too-long" or "truncated" if there is no content."""
    if length > limits.max_record_bytes:
        start = lines.block(1024)
        return ("too-long" if lines.skip(length - len(start)) else "truncated"), start
    content = lines.block(length)
    return (kind if len(content) == length else "truncated"), content


def _arc_records(lines: _LineReader, limits: Limits) -> Iterator[ArchiveRecord]:
    """Each record is a line `url ip date type [...] length`, and that many bytes. The URL may have spaces."""
    is_in_sync = True
    while True:
        offset = lines.offset
        line = lines.line()
        if not line:
            return
        words = line.decode("utf-8", "replace").split()
        if not words:
            continue
        is_header = len(words) >= 5 and ":" in words[0] and words[-1].isascii() and words[-1].isdigit()
        if not is_header:
            if is_in_sync or (":" in words[0] and len(words) >= 5 and words[-3].isdigit()):
                yield ArchiveRecord(offset, "malformed", None, None, "", line)
            is_in_sync = False
            continue
        is_in_sync = True
        kind, content = _content(lines, int(words[-1]), "response", limits)
        url, date, content_type = " ".join(words[:-4]), words[-3], words[-2]
        if url.startswith("filedesc:") and kind == "response":
            kind = "warcinfo"
        yield ArchiveRecord(offset, kind, url, date, content_type, content)
