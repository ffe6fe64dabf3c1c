"""JSON Lines and JSON arrays.

Each line is parsed by orjson on its own: it refuses invalid UTF-8, lone surrogates and nesting beyond 1,024, where a
schema-inferring reader can crash. Lines of white space only are no records.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from retrodb.corpus.document import Document, Fields, Limits, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.source import SourceFile, read_capped
from retrodb.corpus.streams import delimited_records

BOM = b"\xef\xbb\xbf"


def read_jsonl(source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """One JSON object a line."""
    lines = delimited_records(source.stream, b"\n", limits.max_record_bytes, start=source.start, end=source.end)
    for offset, line, is_whole in lines:
        if not is_whole:
            yield Reject(source.path, f"byte {offset}", "too-long", excerpt_of(line))
            continue
        if offset == 0:
            line = line.removeprefix(BOM)
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if line and not line.isspace():
                yield _refused(source.path, offset, line, error)
            continue
        yield from _of_value(record, fields, limits, source.path, f"byte {offset}")


def read_json(source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """A JSON array of objects, or one object, of at most `max_record_bytes` in all (it is parsed whole)."""
    content = read_capped(source, limits)
    if isinstance(content, Reject):
        yield content
        return
    content = content.removeprefix(BOM)
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        yield _refused(source.path, 0, content, error)
        return
    for number, record in enumerate(value if isinstance(value, list) else [value]):
        yield from _of_value(record, fields, limits, source.path, f"record {number}")


def _of_value(value: object, fields: Fields, limits: Limits, path: str, place: str) -> Iterator[Document | Reject]:
    if isinstance(value, dict):
        return documents_of(value, fields, limits, path=path, place=place)
    return iter((Reject(path, place, "not-an-object", excerpt_of(value)),))


def _refused(path: str, offset: int, content: bytes, error: orjson.JSONDecodeError) -> Reject:
    """A reject that says why orjson refused, and the byte at which."""
    try:
        content.decode()
    except UnicodeDecodeError as bad:
        return Reject(path, f"byte {offset + bad.start}", "invalid-utf8", excerpt_of(content[max(bad.start - 50, 0) :]))
    reason = "lone-surrogate" if "surrogate" in error.msg else "not-json"
    return Reject(path, f"byte {offset + _byte_of(content, error.pos)}", reason, excerpt_of(content))


def _byte_of(content: bytes, character: int) -> int:
    return len(content.decode()[:character].encode())
