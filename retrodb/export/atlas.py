"""Export for Atlas: `passages.jsonl` with a line `{id, title, text}` for every chunk of the database, in the order of their ids.

Atlas finds passages by line. A chunk that is deleted later keeps its line, with an empty text.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import orjson

from retrodb.export.dpr import chunk_titles
from retrodb.export.export_file import Delimiters, ExportFile, TextPiece, text_file
from retrodb.export.export_source import ExportSource
from retrodb.export.positions import PositionSpan

_BYTES_PER_TOKEN = 4.5
_LINES = Delimiters(start=b"", between=b"", end=b"", empty=b"")


def atlas_files(source: ExportSource) -> list[ExportFile]:
    """The file of the export."""
    pieces = [
        TextPiece(
            int(len(span) * source.chunk_tokens * _BYTES_PER_TOKEN),
            partial(source.chunks_digest, span),
            partial(_lines, source, span),
        )
        for span in source.chunks.spans
    ]
    return [text_file("passages.jsonl", pieces, _LINES, source.scratch)]


def _lines(source: ExportSource, span: PositionSpan) -> Iterator[bytes]:
    database = source.database
    for ids in span.blocks():
        titles = chunk_titles(database, ids)
        for chunk_id, title, text in zip(ids.tolist(), titles, database.texts(ids), strict=True):
            yield orjson.dumps({"id": str(chunk_id), "title": title, "text": text}) + b"\n"
