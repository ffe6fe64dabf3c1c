"""Export for Atlas: `passages.jsonl`, a line `{id, title, text}` for every chunk of the database, in the order of their ids.

Atlas finds passages by line: a chunk that is deleted later keeps its line, with an empty text.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from retrodb.export.dpr import titles_of
from retrodb.export.pieces import Piece
from retrodb.export.source import ExportSource

_BYTES_PER_TOKEN = 4.5


def pieces_of_atlas(source: ExportSource) -> list[Piece]:
    """The file of the export."""
    database = source.database

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for ids in source.chunks.blocks():
                titles = titles_of(database, ids)
                for chunk_id, title, text in zip(ids.tolist(), titles, database.texts(ids), strict=True):
                    file.write(orjson.dumps({"id": str(chunk_id), "title": title, "text": text}) + b"\n")

    size = int(len(source.chunks) * source.chunk_tokens * _BYTES_PER_TOKEN)
    return [Piece("passages.jsonl", size, source.state_of_chunks, write)]
