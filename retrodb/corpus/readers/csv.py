"""Comma- and tab-separated values with a header line."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator

from retrodb.corpus.document import Document, Fields, Limits, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.field_names import check_columns, kept_columns
from retrodb.corpus.readers.open_file import OpenFile


def read_csv(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """Comma-separated, double quotes as in RFC 4180; a quoted field may hold newlines."""
    rows = csv.reader(_lines(source, limits), strict=True)  # strict: an open quote is an error, not a field
    return _read_rows(rows, source, fields, limits)


def read_tsv(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """Tab-separated, one record per line. Quotes are ordinary characters, as in the registered media type."""
    rows = csv.reader(_lines(source, limits), delimiter="\t", quoting=csv.QUOTE_NONE)
    return _read_rows(rows, source, fields, limits)


def _read_rows(
    rows: Iterator[list[str]], source: OpenFile, fields: Fields, limits: Limits
) -> Iterator[Document | Reject]:
    # The csv module has one limit for the whole process, 131,072 characters by default. Ours bounds a record.
    csv.field_size_limit(min(limits.max_record_bytes, sys.maxsize))
    header: list[str] | None = None
    number = 0
    while True:
        location = f"record {number}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Reject(source.path, location, "not-csv", excerpt_of(str(error)))
            number += 1
            continue
        if row is None:
            return
        if not row:  # a blank line
            continue
        if header is None:
            header = _column_names(row)
            check_columns(header, kept_columns(header, fields), source.path)
            continue
        if len(row) == len(header):
            record: dict[str, object] = dict(zip(header, row, strict=True))
            yield from documents_of(record, fields, limits, path=source.path, location=location)
        else:
            yield Reject(source.path, location, "not-csv", excerpt_of(row))
        number += 1


def _column_names(header: list[str]) -> list[str]:
    """Names of the columns. One without a name, such as the index that pandas writes, is named as pandas does."""
    return [name if name.strip() else f"Unnamed: {index}" for index, name in enumerate(header)]


def _lines(source: OpenFile, limits: Limits) -> Iterator[str]:
    """Lines with their ends. A byte that is not UTF-8 becomes a lone surrogate, so that only its record is refused."""
    text = io.TextIOWrapper(
        io.BufferedReader(_RawFile(source)), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    while line := text.readline(limits.max_record_bytes):
        yield line


class _RawFile(io.RawIOBase):
    """An open file in the form that `TextIOWrapper` needs."""

    def __init__(self, source: OpenFile) -> None:
        self._stream = source.stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)
