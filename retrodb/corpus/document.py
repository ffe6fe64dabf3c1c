"""One record of a corpus: accepted as a document, or refused with a reason.

Every record that a reader finds becomes exactly one `Document` or `Reject`, or several documents if an oversized one is
split. So the number of records read equals the number of outcomes. Blank lines are not records.

Reasons of a reject::

    not-json  not-an-object  not-csv                the record is not of its format
    duplicate-field                                 two fields of an object have one name
    no-text-field  no-key-field  no-value-field     the mapped field is missing or null
    text-not-a-string  id-not-a-string              the mapped field is a number, a list, ...
    empty                                           no text, or only white space
    invalid-utf8  lone-surrogate                    not Unicode text
    value-out-of-range                              a date without an ISO 8601 form, an integer above 64 bits
    nested-too-deep                                 JSON or HTML that is nested too deep
    too-many-attributes                             an HTML tag that takes minutes to parse
    too-long                                        above a limit of `Limits`
    unknown-encoding                                the body of a page cannot be decoded
    bad-front-matter                                a header for the metadata is neither YAML nor TOML
    truncated  malformed                            a record of an archive is cut off, or has no readable header
    unknown-format                                  no reader understands the file
    unreadable-file                                 a file is cut off, damaged, or has two columns of one name
    reader-crashed                                  the process that read the file died (the stage adds this)
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson

from retrodb.corpus.file_names import escape_name

ID_NAMES = ("id", "doc_id", "document_id", "docid", "_id", "uuid", "url", "uri")
TEXT_NAMES = ("text", "content", "body", "raw_content", "contents", "document", "passage")
MISSING_FIELD = ("no-text-field", "no-key-field", "no-value-field")
"""The reasons of records that lack a mapped field. Their excerpt names the fields that there are."""
EXCERPT_CHARS = 200
MAX_RECORD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """One accepted record."""

    doc_id: str | None  # None if the record has no id; the stage then uses `content_id`
    text: str  # the whole text; the key, in a key-value corpus
    value: str | None  # the value of a key-value corpus, otherwise None
    metadata: bytes  # a compact JSON object in UTF-8, in the record's own field order
    location: str  # in the file: "byte 1234" (of the decompressed bytes) or "record 17" (from 0)

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or the key and the value."""
        return (self.text,) if self.value is None else (self.text, self.value)


@dataclass(frozen=True, slots=True)
class Reject:
    """One refused record."""

    path: str  # the input file, with "!member" for a member of an archive
    location: str  # as in `Document`; ", field NAME" follows if one field is at fault
    reason: str  # one of the reasons above
    excerpt: str  # at most 200 printable characters of the refused record


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a record is the id, the text, the key, the value and the metadata.

    If `id` is not set, it is the first name of `ID_NAMES` that the record has; `text` likewise with `TEXT_NAMES`. This is
    decided for each record separately, so it never depends on other records. With `key` and `value` the corpus is a
    key-value corpus, and `text` is ignored. A value that is a list of strings is joined with newlines. An id is a string
    or an integer. If it is missing, null or empty, the record has no id.
    """

    id: str | None = None  # None: the first of the usual names
    text: str | None = None  # None: the first of the usual names
    key: str | None = None  # set together with `value`
    value: str | None = None  # set together with `key`
    metadata: tuple[str, ...] | None = None  # None: every field that is not mapped above
    drop_metadata: bool = False  # keep no metadata
    marker: str | None = None  # separates the documents of a plain-text file; None: one file is one document
    front_matter: str = "text"  # the header of text and Markdown files: part of the "text", or fields of the "metadata"


@dataclass(frozen=True, slots=True)
class Limits:
    """Size limits of one record."""

    max_document_chars: int = 100_000_000  # characters of text (key and value together)
    oversize: str = (
        "reject"  # "split" cuts a longer text into several documents; long key-value pairs are always refused
    )
    max_record_bytes: int = MAX_RECORD_BYTES  # decompressed bytes of one record; this bounds the memory for any input


def content_id(text: str, value: str | None = None) -> str:
    """Hexadecimal xxh3-128 of the text, or of key, NUL and value: the id of a document without an id of its own."""
    from retrodb.format.document_keys import content_hash

    return content_hash(text, value).hex()


def excerpt_of(record: object) -> str:
    """The printable beginning of a refused record."""
    if isinstance(record, bytes | bytearray | memoryview):
        record = bytes(record[: 4 * EXCERPT_CHARS]).decode("utf-8", "replace")
    text = record if isinstance(record, str) else repr(record)
    return "".join(c if c.isprintable() else " " for c in text[:EXCERPT_CHARS])


class RecordError(ValueError):
    """A record is refused.

    Args:
        reason: one of the reasons above.
        field: name of the field that is at fault, if it is one.
    """

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.field = reason, field


class FormattedValue(str):
    """The JSON form of a value for which JSON has no type, such as a date. It may be an id, but it is not a text."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class UnreadableValue:
    """A field value without a JSON form. It refuses its record, if the field is kept."""

    reason: str  # one of the reasons above
    content: object  # for the excerpt


def json_of_bytes(value: object) -> object:
    """Bytes as JSON: UTF-8 as a string, since old Parquet writers do not mark strings; others as {"base64": ...}."""
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def documents_of(
    record: Mapping[str, object], fields: Fields, limits: Limits, *, path: str, location: str, doc_id: str | None = None
) -> Iterator[Document | Reject]:
    """The document of a record of named fields, or its reject.

    Args:
        record: field values, of the types that JSON has. Texts may also be UTF-8 bytes that are not yet checked.
        doc_id: the id if the record itself has none, such as the name of a file or the URL of a page.
    """
    try:
        document = _map_record(record, fields, location, doc_id)
        yield from _within_limits(document, limits)
    except RecordError as error:
        quoted = _fields_if_one_is_missing(record, error.reason) or _quoted(record, fields, error)
        yield Reject(path, _place(location, error), error.reason, excerpt_of(quoted))


def _place(location: str, error: RecordError) -> str:
    return location if error.field is None else f"{location}, field {escape_name(error.field)}"


def _quoted(record: Mapping[str, object], fields: Fields, error: RecordError) -> object:
    """What describes a bad record best: the value at fault, or the text. A record without a text is quoted whole."""
    names = (error.field, fields.key, fields.text, *TEXT_NAMES)
    value = next((record[name] for name in names if name and name in record), None)
    return value.content if isinstance(value, UnreadableValue) else value or record


def _fields_if_one_is_missing(record: Mapping[str, object], reason: str) -> str | None:
    """The names of the fields of a record that lacks a mapped one: they show which name to give."""
    return f"its fields are: {', '.join(map(str, record))}" if reason in MISSING_FIELD else None


def _map_record(record: Mapping[str, object], fields: Fields, location: str, default_id: str | None) -> Document:
    id_name = fields.id or _first_present(ID_NAMES, record)
    value: str | None = None
    text_name: str | None
    if fields.key is not None:
        text_name = fields.key
        text = _as_text(record.get(text_name), "no-key-field")
        value = _as_text(_joined(record.get(fields.value) if fields.value else None), "no-value-field")
    else:
        text_name = fields.text or _first_present(TEXT_NAMES, record)
        text = _as_text(record.get(text_name) if text_name else None, "no-text-field")
    doc_id = _as_id(record.get(id_name)) if id_name else None
    mapped = {text_name, id_name if doc_id is not None else None, fields.value}
    return Document(doc_id or default_id, text, value, _as_metadata(record, fields, mapped), location)


def _first_present(names: tuple[str, ...], record: Mapping[str, object]) -> str | None:
    for name in names:  # a generator expression takes a tenth of the time of the whole reader
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
    if isinstance(value, UnreadableValue):
        raise RecordError(value.reason)
    if not isinstance(value, str) or isinstance(value, FormattedValue):
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
        return str(value) if value else None
    raise RecordError(value.reason if isinstance(value, UnreadableValue) else "id-not-a-string")


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RecordError("invalid-utf8") from None


def _check_unicode(text: str) -> None:
    if text.isascii():  # Python stores this, so it is free
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Readers that decode with "surrogateescape" turn a bad byte into U+DC80..U+DCFF.
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
        return _dumps(kept)
    except TypeError as error:
        raise _metadata_error(kept) from error


def _dumps(fields: Mapping[str, object]) -> bytes:
    return orjson.dumps(fields, default=json_of_bytes, option=orjson.OPT_PASSTHROUGH_DATACLASS)


def _metadata_error(kept: Mapping[str, object]) -> RecordError:
    """Which field orjson cannot write, and why."""
    for name, value in kept.items():
        if isinstance(value, UnreadableValue):
            return RecordError(value.reason, name)
        try:
            _dumps({name: value})
        except TypeError as error:
            return RecordError(_reason_of(name, value, str(error)), name)
    return RecordError("nested-too-deep")  # only the record as a whole


def _reason_of(name: str, value: object, message: str) -> str:
    if "ecursion" in message:
        return "nested-too-deep"
    if "64-bit" in message:
        return "value-out-of-range"
    try:
        _check_unicode(name)
        _check_unicode(value if isinstance(value, str) else "")
    except RecordError as error:
        return error.reason
    return "lone-surrogate"


def _within_limits(document: Document, limits: Limits) -> Iterator[Document]:
    size = len(document.text) + len(document.value or "")
    if size <= limits.max_document_chars:
        yield document
    elif limits.oversize == "split" and document.value is None:
        for number, text in enumerate(split_text(document.text, limits.max_document_chars), start=1):
            # The first piece keeps the id. A blank piece would be a document without text.
            doc_id = document.doc_id if number == 1 or document.doc_id is None else f"{document.doc_id}#{number}"
            if not text.isspace():
                yield Document(doc_id, text, None, document.metadata, document.location)
    else:
        raise RecordError("too-long")


def split_text(text: str, max_chars: int) -> Iterator[str]:
    """Consecutive pieces of at most `max_chars` characters; joined they are the text.

    A piece ends after the last newline of its last tenth, if there is one.
    """
    start = 0
    while len(text) - start > max_chars:
        stop = start + max_chars
        newline = text.rfind("\n", stop - max_chars // 10, stop)
        stop = newline + 1 if newline >= 0 else stop
        yield text[start:stop]
        start = stop
    yield text[start:]
