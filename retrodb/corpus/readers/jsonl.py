"""JSON Lines and JSON arrays. `json_lines` is the only reader of JSON Lines: of corpora, test sets, queries and judgements.

orjson parses each line separately. It refuses invalid UTF-8, lone surrogates and nesting deeper than 1,024, where a
reader that infers a schema can crash. Blank lines are skipped. They never end the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import orjson

from retrodb.corpus.document import MAX_RECORD_BYTES, Document, Fields, Limits, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.field_names import DuplicateField, find_duplicate_field
from retrodb.corpus.readers.open_file import OpenFile, read_whole
from retrodb.corpus.streams import BYTE_ORDER_MARK, ByteSource, delimited_records
from retrodb.errors import InputError

_REASONS = {"depth limit exceeded": "nested-too-deep"}  # by orjson's message


class LineTooLong(ValueError):
    """A line is longer than its reader allows."""


class JsonLine(NamedTuple):
    """One line that is not blank."""

    number: int  # from 1, counted from where reading starts
    offset: int  # of its first byte in the file
    content: bytes  # its bytes; the first `max_bytes` of a line that is too long
    value: object  # the parsed JSON value; None if there is an error
    error: orjson.JSONDecodeError | LineTooLong | DuplicateField | None


def json_lines(stream: ByteSource, max_bytes: int, *, start: int = 0, end: int | None = None) -> Iterator[JsonLine]:
    """Every line whose first byte is in [start, end). Blank lines count in `number`, but are not returned.

    Args:
        stream: decompressed bytes, positioned at `start`, which is the first byte of a line.
        max_bytes: the length limit of one line; this bounds the memory.
    """
    lines = delimited_records(stream, b"\n", max_bytes, start=start, end=end)
    for number, (offset, content, is_whole) in enumerate(lines, 1):
        if not is_whole:
            yield JsonLine(number, offset, content, None, LineTooLong(f"longer than {max_bytes:,} bytes"))
            continue
        if offset == 0:
            content = content.removeprefix(BYTE_ORDER_MARK)
        try:
            value = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            if content and not content.isspace():
                yield JsonLine(number, offset, content, None, error)
            continue
        yield JsonLine(number, offset, content, value, find_duplicate_field(content, value))


def read_json_objects(
    stream: ByteSource, path: str, max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number from 1, fields) of every record of a JSON Lines file that must have no errors.

    Args:
        stream: decompressed bytes of the file.
        path: of the file, for error messages.

    Raises:
        InputError: a line is not a JSON object, too long, or has two fields of one name; names the line.
    """
    for line in json_lines(stream, max_bytes):
        where = f"{path}:{line.number}"
        if isinstance(line.error, DuplicateField):
            raise InputError(str(line.error), where=where, remedy="Rename one of them.")
        if line.error is not None:
            raise InputError(f"not valid JSON ({line.error})", where=where) from line.error
        if not isinstance(line.value, dict):
            raise InputError("not a JSON object", where=where)
        yield line.number, line.value


def read_jsonl(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a JSON Lines file: one JSON object per line."""
    for line in json_lines(source.stream, limits.max_record_bytes, start=source.start, end=source.end):
        location = f"byte {line.offset}"
        if line.error is None:
            yield from _documents_of_value(line.value, fields, limits, source.path, location)
        elif isinstance(line.error, LineTooLong):
            yield Reject(source.path, location, "too-long", excerpt_of(line.content))
        elif isinstance(line.error, DuplicateField):
            yield _duplicate(source.path, location, line.error)
        else:
            yield _reject_of(source.path, line.offset, line.content, line.error)


def read_json_array(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a JSON array of objects, or of one object. It is parsed whole: at most `max_record_bytes`."""
    content = read_whole(source, limits)
    if isinstance(content, Reject):
        yield content
        return
    content = content.removeprefix(BYTE_ORDER_MARK)
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        yield _reject_of(source.path, 0, content, error)
        return
    duplicate = find_duplicate_field(content, value)
    if duplicate is not None:
        yield _duplicate(source.path, "byte 0", duplicate)
        return
    for number, record in enumerate(value if isinstance(value, list) else [value]):
        yield from _documents_of_value(record, fields, limits, source.path, f"record {number}")


def _documents_of_value(
    value: object, fields: Fields, limits: Limits, path: str, location: str
) -> Iterator[Document | Reject]:
    if isinstance(value, dict):
        return documents_of(value, fields, limits, path=path, location=location)
    return iter((Reject(path, location, "not-an-object", excerpt_of(value)),))


def _duplicate(path: str, location: str, error: DuplicateField) -> Reject:
    return Reject(path, location, "duplicate-field", excerpt_of(str(error)))


def _reject_of(path: str, offset: int, content: bytes, error: orjson.JSONDecodeError) -> Reject:
    """A reject with the reason why orjson refused the bytes, and the position of the fault."""
    try:
        content.decode()
    except UnicodeDecodeError as bad:
        excerpt = excerpt_of(content[max(bad.start - 50, 0) :])
        return Reject(path, f"byte {offset + bad.start}", "invalid-utf8", excerpt)
    reason = _REASONS.get(error.msg, "lone-surrogate" if "surrogate" in error.msg else "not-json")
    return Reject(path, f"byte {offset + _byte_of(content, error.pos)}", reason, excerpt_of(content))


def _byte_of(content: bytes, character: int) -> int:
    return len(content.decode()[:character].encode())
