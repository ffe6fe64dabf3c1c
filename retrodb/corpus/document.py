"""One record of a corpus: accepted as a document, or refused with a reason.

Every record that a reader finds becomes exactly one `Document` or `Reject` (or several documents, when an oversized one
is split), so that what went in can be counted against what came out. Blank lines are no records.

Reasons of a refusal::

    not-json  not-an-object  not-csv  not-html      the record is not what its format says
    no-text-field  no-key-field  no-value-field     the mapped field is missing or null
    text-not-a-string  id-not-a-string              the mapped field is a number, a list, ...
    empty                                           no text, or white space only
    invalid-utf8  lone-surrogate                    not Unicode text
    too-long                                        above a cap of `Limits`
    bad-front-matter                                a header that is to be metadata, and is neither YAML nor TOML
    truncated  malformed                            an archive's record that is cut off, or has no readable header
    unknown-format                                  a file that no reader understands
    reader-crashed                                  a file at which the process that read it died (the stage says so)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson

ID_NAMES = ("id", "doc_id", "document_id", "docid", "_id", "uuid", "url", "uri")
TEXT_NAMES = ("text", "content", "body", "raw_content", "contents", "document", "passage")
EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Document:
    """One accepted record."""

    doc_id: str | None  # None when the record has no id; the stage then derives one from `content_id`
    text: str  # the whole text; the key, in a key-value corpus
    value: str | None  # the value of a key-value corpus, otherwise None
    metadata: bytes  # a compact JSON object in UTF-8, in the record's own field order
    place: str  # where in the file: "byte 1234" (of the decompressed bytes) or "record 17" (from 0)


@dataclass(frozen=True, slots=True)
class Reject:
    """One refused record."""

    path: str  # the input file, with "!member" when it lies in an archive
    place: str  # as in `Document`
    reason: str  # one of the slugs above
    excerpt: str  # at most 200 printable characters of what was refused


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record are what.

    A field that is not named here is looked for: the id is the first name of `ID_NAMES` that the record has, the text
    the first of `TEXT_NAMES`, record by record, so that the answer never depends on other records. With `key` and
    `value` the corpus is a key-value one and `text` is not looked at; a value that is a list of strings is joined with
    newlines. An id may be a string or an integer; a missing, null or empty one means that the record has none.
    """

    id: str | None = None  # None: look for a usual name
    text: str | None = None  # None: look for a usual name
    key: str | None = None  # given together with `value`, or not at all
    value: str | None = None  # see `key`
    metadata: tuple[str, ...] | None = None  # None: every field that is not mapped above
    drop_metadata: bool = False  # keep no metadata at all
    marker: str | None = None  # separates the documents inside a plain-text file; None: one file is one document
    front_matter: str = "text"  # of text and Markdown files: part of the text, or "metadata", whose fields it then is


@dataclass(frozen=True, slots=True)
class Limits:
    """What one record may take."""

    max_document_chars: int = 100_000_000  # characters of text (key and value together)
    oversize: str = "reject"  # "split" cuts a longer text into several documents; key-value pairs are always refused
    max_record_bytes: int = 512 << 20  # decompressed bytes of one record; bounds memory whatever the input claims


def content_id(text: str, value: str | None = None) -> str:
    """Hexadecimal xxh3-128 of the text, or of the key, a NUL and the value: the id of a document that has none."""
    import xxhash

    content = text if value is None else f"{text}\0{value}"
    return xxhash.xxh3_128_hexdigest(content.encode())


def excerpt_of(record: object) -> str:
    """The beginning of a refused record, printable."""
    if isinstance(record, bytes | bytearray | memoryview):
        record = bytes(record[: 4 * EXCERPT_CHARS]).decode("utf-8", "replace")
    text = record if isinstance(record, str) else repr(record)
    return "".join(c if c.isprintable() else " " for c in text[:EXCERPT_CHARS])


class RecordError(ValueError):
    """A record that has to be refused; its message is the reason. Never leaves this package."""


def documents_of(
    record: Mapping[str, object], fields: Fields, limits: Limits, *, path: str, place: str, doc_id: str | None = None
) -> Iterator[Document | Reject]:
    """The document that a record of named fields is, or why it is none.

    Args:
        record: field values as JSON would give them; texts may also be UTF-8 bytes, not yet checked.
        doc_id: the id when the record itself has none (a file's name, a page's address).
    """
    try:
        document = _map_record(record, fields, place, doc_id)
        yield from _within_limits(document, limits)
    except RecordError as error:
        # The text says most about a bad record; a record without one is shown whole.
        shown = next((record[name] for name in (fields.key, fields.text, *TEXT_NAMES) if name and name in record), None)
        yield Reject(path, place, str(error), excerpt_of(shown or record))


def _map_record(record: Mapping[str, object], fields: Fields, place: str, default_id: str | None) -> Document:
    id_name = fields.id or _first_present(ID_NAMES, record)
    value: str | None = None
    if fields.key is not None:
        text_name = fields.key
        text = _as_text(record.get(text_name), "no-key-field")
        value = _as_text(_joined(record.get(fields.value or "")), "no-value-field")
    else:
        text_name = fields.text or _first_present(TEXT_NAMES, record) or ""
        text = _as_text(record.get(text_name), "no-text-field")
    doc_id = _as_id(record.get(id_name)) if id_name else None
    mapped = {text_name, id_name if doc_id is not None else None, fields.value}
    return Document(doc_id or default_id, text, value, _as_metadata(record, fields, mapped), place)


def _first_present(names: tuple[str, ...], record: Mapping[str, object]) -> str | None:
    for name in names:  # a generator expression here costs a tenth of the whole reader
        if name in record:
            return name
    return None


def _joined(value: object) -> object:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return value


def _as_text(value: object, missing: str) -> str:
    if value is None:
        raise RecordError(missing)
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise RecordError("text-not-a-string")
    if not value or value.isspace():
        raise RecordError("empty")
    _check_unicode(value)
    return value


def _as_id(value: object) -> str | None:
    if isinstance(value, bytes):
        value = _decode(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, str):
        _check_unicode(value or "")
        return value or None
    raise RecordError("id-not-a-string")


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RecordError("invalid-utf8") from None


def _check_unicode(text: str) -> None:
    if text.isascii():  # known without looking
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Readers that decode leniently turn a bad byte into U+DC80..U+DCFF ("surrogateescape").
        is_escaped_byte = 0xDC80 <= ord(text[error.start]) <= 0xDCFF
        raise RecordError("invalid-utf8" if is_escaped_byte else "lone-surrogate") from None


def _as_metadata(record: Mapping[str, object], fields: Fields, mapped: set[str | None]) -> bytes:
    if fields.drop_metadata:
        return b"{}"
    if fields.metadata is not None:
        kept = {name: record[name] for name in fields.metadata if name in record}
    else:
        kept = {name: value for name, value in record.items() if name not in mapped}
    if not kept:
        return b"{}"
    try:
        return orjson.dumps(kept, default=_plain)
    except TypeError:
        raise RecordError("invalid-utf8") from None  # orjson's only complaint left: a string that is no Unicode


def _plain(value: object) -> object:
    """What JSON has no word for: bytes as text (a Parquet string column is read as bytes), all else as its `str`."""
    return _decode(value) if isinstance(value, bytes) else str(value)


def _within_limits(document: Document, limits: Limits) -> Iterator[Document]:
    size = len(document.text) + len(document.value or "")
    if size <= limits.max_document_chars:
        yield document
    elif limits.oversize == "split" and document.value is None:
        for number, text in enumerate(split_text(document.text, limits.max_document_chars), start=1):
            # The first piece keeps the id; blank pieces would be documents of nothing.
            doc_id = document.doc_id if number == 1 or document.doc_id is None else f"{document.doc_id}#{number}"
            if not text.isspace():
                yield Document(doc_id, text, None, document.metadata, document.place)
    else:
        raise RecordError("too-long")


def split_text(text: str, max_chars: int) -> Iterator[str]:
    """Consecutive pieces of at most `max_chars`, joined equal to the text; cut after a newline in the last tenth if
    there is one."""
    start = 0
    while len(text) - start > max_chars:
        stop = start + max_chars
        newline = text.rfind("\n", stop - max_chars // 10, stop)
        stop = newline + 1 if newline >= 0 else stop
        yield text[start:stop]
        start = stop
    yield text[start:]
