"""Comma- and tab-separated values with a header line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, cast

from retrodb.corpus.document import Document, Fields, Limits, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.source import SourceFile


def read_csv(source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """Comma-separated, double quotes as in RFC 4180; a quoted field may hold newlines."""
    rows = csv.reader(_lines(source, limits), strict=True)  # strict: a quote left open is an error, not a field
    return _read_rows(rows, source, fields, limits)


def read_tsv(source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """Tab-separated, one record a line; quotes are ordinary characters, as in the registered media type."""
    rows = csv.reader(_lines(source, limits), delimiter="\t", quoting=csv.QUOTE_NONE)
    return _read_rows(rows, source, fields, limits)


def _read_rows(
    rows: Iterator[list[str]], source: SourceFile, fields: Fields, limits: Limits
) -> Iterator[Document | Reject]:
    # The limit is the process's, and 131,072 characters unless set; a record here is bounded by our own.
    csv.field_size_limit(limits.max_record_bytes)
    header: list[str] | None = None
    number = 0
    while True:
        place = f"record {number}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Reject(source.path, place, "not-csv", excerpt_of(str(error)))
            number += 1
            continue
        if row is None:
            return
        if not row:  # a blank line
            continue
        if header is None:
            header = row
            continue
        if len(row) == len(header):
            record = cast("dict[str, object]", dict(zip(header, row, strict=True)))
            yield from documents_of(record, fields, limits, path=source.path, place=place)
        else:
            yield Reject(source.path, place, "not-csv", excerpt_of(row))
        number += 1


def _lines(source: SourceFile, limits: Limits) -> Iterator[str]:
    """Lines with their ends; a byte that is no UTF-8 becomes a lone surrogate, which costs its record alone."""
    text = io.TextIOWrapper(io.BufferedReader(_Raw(source)), encoding="utf-8-sig", errors="surrogateescape", newline="")
    while line := text.readline(limits.max_record_bytes):
        yield line


class _Raw(io.RawIOBase):
    """A source as the file object that `TextIOWrapper` asks for."""

    def __init__(self, source: SourceFile) -> None:
        self._stream = source.stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)
