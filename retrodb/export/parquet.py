"""Export to Parquet: the two tables of `tables.py`, in `rows/` and `chunks/`, a file for every range of ids."""

from __future__ import annotations

from pathlib import Path

from retrodb.export.pieces import Piece
from retrodb.export.source import ExportSource
from retrodb.export.tables import TablePart, table_parts
from retrodb.format.parquet import write_table


def pieces_of_parquet(source: ExportSource) -> list[Piece]:
    """The files of the export."""
    return [_piece(part) for part in table_parts(source)]


def _piece(part: TablePart) -> Piece:
    def write(path: Path) -> None:
        write_table(path, part.content())

    return Piece(f"{part.table}/{part.number:08d}.parquet", part.size_bytes, part.state, write)
