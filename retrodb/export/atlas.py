"""Export for Atlas: `passages.jsonl` with a line `{id, title, text}` for every chunk of the database, in the order of their ids.

Atlas finds passages by line. A chunk that is deleted later keeps its line, with an empty text.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import orjson

from retrodb.export.dpr import chunk_titles
from retrodb.export.export_file import ExportFile, whole_file
from retrodb.export.export_source import ExportSource
from retrodb.store.digest import identity

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
    return [whole_file("passages.jsonl", size, partial(_chunks_digest, source), write)]


def _chunks_digest(source: ExportSource) -> str:
    return identity([source.chunks_digest(span) for span in source.chunks.spans])
