"""Plain text and Markdown: one file is one document, or several that a marker separates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from retrodb.corpus.document import Document, Fields, Limits, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.field_names import DuplicateField
from retrodb.corpus.readers.front_matter import split_front_matter
from retrodb.corpus.readers.open_file import OpenFile, read_whole
from retrodb.corpus.streams import BYTE_ORDER_MARK, delimited_records

_BODY, _NO_FIELD = "\0body", "\0none"  # names that no field of a header has


def read_text(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a text file. By default it is one document, without a byte order mark; its id is its path.

    With `Fields.marker` the file has many documents without ids: the texts between the markers, without the newlines at
    both ends. Blank texts between markers are not records. With `Fields.front_matter` "metadata" the fields of a header
    are fields of the record. Its id is its path, unless `Fields.id` names one of these fields.
    """
    if fields.marker is not None:
        yield from _between_markers(source, fields.marker.encode(), fields, limits)
        return
    content = read_whole(source, limits)
    if isinstance(content, Reject):
        yield content
        return
    yield from _document(content.removeprefix(BYTE_ORDER_MARK), source, fields, limits, 0, source.name)


def _between_markers(source: OpenFile, marker: bytes, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    pieces = delimited_records(source.stream, marker, limits.max_record_bytes, start=source.start, end=source.end)
    for offset, piece, is_whole in pieces:
        if not is_whole:
            yield Reject(source.path, f"byte {offset}", "too-long", excerpt_of(piece))
        elif piece and not piece.isspace():
            yield from _document(piece.strip(b"\r\n"), source, fields, limits, offset, None)


def _document(
    content: bytes, source: OpenFile, fields: Fields, limits: Limits, offset: int, doc_id: str | None
) -> Iterator[Document | Reject]:
    location = f"byte {offset}"
    try:
        text = content.decode()
    except UnicodeDecodeError as bad:
        excerpt = excerpt_of(content[max(bad.start - 50, 0) :])
        return iter((Reject(source.path, f"byte {offset + bad.start}", "invalid-utf8", excerpt),))
    header: dict[str, object] = {}
    if fields.front_matter == "metadata":
        try:
            header, text = split_front_matter(text)
        except DuplicateField as error:
            return iter((Reject(source.path, location, "duplicate-field", excerpt_of(str(error))),))
        except ValueError:
            return iter((Reject(source.path, location, "bad-front-matter", excerpt_of(text)),))
    mapping = replace(fields, id=fields.id or _NO_FIELD, text=_BODY, key=None, value=None)
    record = {**header, _BODY: text}
    return documents_of(record, mapping, limits, path=source.path, location=location, doc_id=doc_id)
