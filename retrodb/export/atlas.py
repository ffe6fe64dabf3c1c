"""Export for Atlas: `passages.jsonl` with a line `{id, title, text}` for every chunk of the database, in the order of their ids.

Atlas finds passages by line. A chunk that is deleted later keeps its line, with an empty text.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from retrodb.export.dpr import chunk_titles
from retrodb.export.export_source import ExportSource
from retrodb.export.folder import ExportFile

_BYTES_PER_TOKEN = 4.5


def atlas_files(source: ExportSource) -> list[ExportFile]:
    """The file of the export."""
    database = source.database

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for ids in source.chunks.blocks():
                titles = chunk_titles(database, ids)
                for chunk_id, title, text in zip(ids.tolist(), titles, database.texts(ids), strict=True):
                    file.write(orjson.dumps({"id": str(chunk_id), "title": title, "text": text}) + b"\n")

    size = int(len(source.chunks) * source.chunk_tokens * _BYTES_PER_TOKEN)
    return [ExportFile("passages.jsonl", size, source.chunks_digest, write)]
