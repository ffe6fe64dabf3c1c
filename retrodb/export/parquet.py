"""Export to Parquet: the two tables of `tables.py` in `rows/` and `chunks/`, with one file for every range of ids."""

from __future__ import annotations

from pathlib import Path

from retrodb.export.export_file import ExportFile, whole_file
from retrodb.export.export_source import ExportSource
from retrodb.export.tables import TablePart, table_parts
from retrodb.format.parquet import write_table


def parquet_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export."""
    return [_file(part) for part in table_parts(source)]


def _file(part: TablePart) -> ExportFile:
    def write(path: Path) -> None:
        write_table(path, part.content())

    return whole_file(f"{part.table}/{part.number:08d}.parquet", part.size_bytes, part.inputs_digest, write)
