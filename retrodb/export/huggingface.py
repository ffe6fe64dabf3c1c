"""Export for `datasets.load_from_disk`: a DatasetDict of the two tables of `tables.py`, `rows` and `chunks`.

The folder is what that library saves, written without it: Arrow streams, and small JSON files that name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrodb.export.pieces import Piece, json_file
from retrodb.export.source import ExportSource
from retrodb.export.tables import TablePart, table_parts
from retrodb.store.digest import identity

_BATCH_ROWS = 1000  # what `datasets` itself writes: random access reads a batch's offsets
_TABLES = ("rows", "chunks")
_INFO_FIELDS = ("citation", "description", "homepage", "license")


def pieces_of_huggingface(source: ExportSource) -> list[Piece]:
    """The files of the export."""
    parts = table_parts(source)
    pieces = [_piece(part) for part in parts]
    for table in _TABLES:
        own = [part for part in parts if part.table == table]
        state: dict[str, Any] = {
            "_data_files": [{"filename": _file_name(part)} for part in own],
            "_fingerprint": identity([part.state() for part in own])[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": table,
        }
        pieces.append(json_file(f"{table}/state.json", state))
        pieces.append(json_file(f"{table}/dataset_info.json", dict.fromkeys(_INFO_FIELDS, "")))
    return [*pieces, json_file("dataset_dict.json", {"splits": list(_TABLES)})]


def _piece(part: TablePart) -> Piece:
    def write(path: Path) -> None:
        import pyarrow as pa

        content = part.content()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content, max_chunksize=_BATCH_ROWS)

    return Piece(f"{part.table}/{_file_name(part)}", part.size_bytes, part.state, write)


def _file_name(part: TablePart) -> str:
    return f"data-{part.number:08d}.arrow"
