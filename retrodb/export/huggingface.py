"""Export for `datasets.load_from_disk`: a DatasetDict of the two tables of `tables.py`, `rows` and `chunks`.

The folder is what that library saves, but written without it: Arrow streams, and small JSON files that name them.
"""

from __future__ import annotations

from pathlib import Path

from retrodb.export.export_source import ExportSource
from retrodb.export.folder import ExportFile, json_file
from retrodb.export.tables import TablePart, table_parts
from retrodb.store.digest import identity

_BATCH_ROWS = 1000  # as `datasets` writes: random access reads the offsets of a whole batch
_TABLES = ("rows", "chunks")
_INFO_FIELDS = ("citation", "description", "homepage", "license")


def huggingface_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export."""
    parts = table_parts(source)
    files = [_file(part) for part in parts]
    for table in _TABLES:
        of_table = [part for part in parts if part.table == table]
        state: dict[str, object] = {
            "_data_files": [{"filename": _file_name(part)} for part in of_table],
            "_fingerprint": identity([part.inputs_digest() for part in of_table])[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": table,
        }
        files.append(json_file(f"{table}/state.json", state))
        files.append(json_file(f"{table}/dataset_info.json", dict.fromkeys(_INFO_FIELDS, "")))
    return [*files, json_file("dataset_dict.json", {"splits": list(_TABLES)})]


def _file(part: TablePart) -> ExportFile:
    def write(path: Path) -> None:
        import pyarrow as pa

        content = part.content()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content, max_chunksize=_BATCH_ROWS)

    return ExportFile(f"{part.table}/{_file_name(part)}", part.size_bytes, part.inputs_digest, write)


def _file_name(part: TablePart) -> str:
    return f"data-{part.number:08d}.arrow"
