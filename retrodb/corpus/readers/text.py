"""Plain text and Markdown: one file is one document, or several separated by a marker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from retrodb.corpus.document import Document, Fields, Limits, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.front_matter import split_front_matter
from retrodb.corpus.readers.source import SourceFile, read_capped
from retrodb.corpus.streams import delimited_records

BOM = b"\xef\xbb\xbf"
_BODY, _NO_FIELD = "\0body", "\0none"  # no header has a field of such a name


def read_text(source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The file as it is, less a byte order mark; its id is its path below the folder that was given.

    With `Fields.marker` the file holds many documents without ids: what lies between the markers, less the newlines
    at either end. Blank stretches between markers are no records. With `Fields.front_matter` "metadata" the fields of
    a header are those of the record, and its id is its path unless `Fields.id` names one of them.
    """
    if fields.marker is not None:
        yield from _between_markers(source, fields.marker.encode(), fields, limits)
        return
    content = read_capped(source, limits)
    if isinstance(content, Reject):
        yield content
        return
    yield from _document(content.removeprefix(BOM), source, fields, limits, 0, source.name)


def _between_markers(source: SourceFile, marker: bytes, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    pieces = delimited_records(source.stream, marker, limits.max_record_bytes, start=source.start, end=source.end)
    for offset, piece, is_whole in pieces:
        if not is_whole:
            yield Reject(source.path, f"byte {offset}", "too-long", excerpt_of(piece))
        elif piece and not piece.isspace():
            yield from _document(piece.strip(b"\r\n"), source, fields, limits, offset, None)


def _document(
    content: bytes, source: SourceFile, fields: Fields, limits: Limits, offset: int, doc_id: str | None
) -> Iterator[Document | Reject]:
    place = f"byte {offset}"
    try:
        text = content.decode()
    except UnicodeDecodeError as bad:
        shown = excerpt_of(content[max(bad.start - 50, 0) :])
        return iter((Reject(source.path, f"byte {offset + bad.start}", "invalid-utf8", shown),))
    header: dict[str, object] = {}
    if fields.front_matter == "metadata":
        try:
            header, text = split_front_matter(text)
        except ValueError:
            return iter((Reject(source.path, place, "bad-front-matter", excerpt_of(text)),))
    mapping = replace(fields, id=fields.id or _NO_FIELD, text=_BODY, key=None, value=None)
    return documents_of({**header, _BODY: text}, mapping, limits, path=source.path, place=place, doc_id=doc_id)
