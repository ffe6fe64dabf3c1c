"""Export for `datasets.load_from_disk`: a DatasetDict of the two tables of `tables.py`, `rows` and `chunks`.

The folder is what that library saves, but written without it: Arrow streams, and small JSON files that name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from retrodb.export.export_file import ExportFile, json_file, whole_file
from retrodb.export.export_source import ExportSource
from retrodb.export.tables import TablePart, table_parts
from retrodb.store.digest import identity

_BATCH_ROWS = 1000  # as `datasets` writes: random access reads the offsets of a whole batch
_TABLES = ("rows", "chunks")
_INFO_FIELDS = ("citation", "description", "homepage", "license")


def huggingface_files(source: ExportSource) -> list[ExportFile]:
    """The Arrow files of the export."""
    return [_file(part) for part in table_parts(source)]


def huggingface_index(states: Mapping[str, str]) -> list[ExportFile]:
    """The JSON files, which name the Arrow files that have rows.

    Args:
        states: the digest of the inputs of each Arrow file by its path; "" for one without rows.
    """
    files = []
    for table in _TABLES:
        of_table = {path: state for path, state in states.items() if state and path.startswith(f"{table}/")}
        state: dict[str, object] = {
            "_data_files": [{"filename": path.removeprefix(f"{table}/")} for path in of_table],
            "_fingerprint": identity(list(of_table.values()))[:16],
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

    return whole_file(f"{part.table}/data-{part.number:08d}.arrow", part.size_bytes, part.inputs_digest, write)
