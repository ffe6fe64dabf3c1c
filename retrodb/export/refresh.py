"""Refreshing an export: it follows its database, and no chunk of it changes its position.

A chunk that was deleted since the export becomes padding at its position, as a neighbour and as a continuation. A repaired row
gets its new neighbours. Only files in which something changed are written. Chunks that were added after the export have no
position in formats whose readers find chunks by position: they are counted, and need a new export.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodb.errors import DamagedFileError, MismatchError
from retrodb.export.card import ExportCard, make_card, read_card, write_card
from retrodb.export.export import FORMATS, exported_view, register_export
from retrodb.export.export_source import ExportSource, TablePositions
from retrodb.export.folder import RECORD, ExportFolder
from retrodb.export.positions import ExportPositions
from retrodb.format.entries import ExportEntry
from retrodb.stages.context import Context
from retrodb.store.storage import translate_os_error
from retrodb.view.neighbour_table import NeighbourTable


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh changed."""

    path: str
    format: str
    table: str
    snapshot: int
    changed: tuple[str, ...]  # files that were written, or would be
    removed: tuple[str, ...]  # files whose rows are all deleted
    num_unchanged_files: int
    must_reopen: tuple[str, ...]  # files of which running readers see the old content until they open them again
    num_rows_without_position: int  # rows of the table that are not in the export, because they were added later
    dry_run: bool = False


@dataclass(frozen=True)
class ExportInfo:
    """A registered export."""

    id: str
    path: str
    format: str
    table: str
    snapshot: int  # that it shows


def run_refresh(context: Context, out: Path, *, dry_run: bool = False) -> RefreshResult:
    """Bring an export up to date with the newest snapshot.

    Raises:
        UsageError: when the folder is no export.
        DamagedFileError: when its card or its record cannot be read.
        MismatchError: when its table or query set was rebuilt in another shape, or it is of another database.
    """
    card = read_card(out)
    view = exported_view(context)
    tables = {subset: NeighbourTable(view, str(table["name"])) for subset, table in card.tables.items()}
    folder = _recorded_folder(out)
    source = ExportSource.of_tables(tables, _recorded_positions(folder, list(tables)), card.params)
    new_card = make_card(source, card.format, out)
    _check_same_origin(card, new_card, out)
    export_format = FORMATS[card.format]
    files = export_format.files(source)
    changed, removed = folder.outdated(files), folder.abandoned(files)
    result = RefreshResult(
        path=str(out),
        format=card.format,
        table=card.table_name,
        snapshot=view.snapshot.number,
        changed=tuple(file.path for file in changed),
        removed=tuple(removed),
        num_unchanged_files=len(files) - len(changed),
        must_reopen=(*(file.path for file in changed if file.must_reopen), *removed),
        num_rows_without_position=_num_rows_without_position(source) if export_format.has_positions else 0,
        dry_run=dry_run,
    )
    if dry_run:
        return result
    try:
        folder.update(files, context.progress)
        write_card(out, new_card)
    except OSError as error:
        raise translate_os_error(error, str(out)) from error
    register_export(context, new_card)
    return result


def list_exports(context: Context) -> list[ExportInfo]:
    """The registered exports, by id."""
    snapshot = context.view().snapshot
    entries = {name: snapshot.existing(ExportEntry, name) for name in snapshot.names(ExportEntry)}
    return [ExportInfo(name, entry.path, entry.format, entry.table, entry.snapshot) for name, entry in entries.items()]


def _recorded_folder(out: Path) -> ExportFolder:
    folder = ExportFolder.read(out)
    if not folder.record.plan:
        raise DamagedFileError("the record of the export is missing", where=str(out / RECORD), remedy="Export again.")
    return folder


def _recorded_positions(folder: ExportFolder, subsets: list[str]) -> dict[str, TablePositions]:
    record = folder.record
    chunks = ExportPositions.from_records(record.chunks)
    positions = {}
    for subset in subsets:
        rows = record.subset_rows.get(subset, record.rows)
        positions[subset] = TablePositions(
            chunks, chunks if rows == record.chunks else ExportPositions.from_records(rows)
        )
    return positions


def _check_same_origin(card: ExportCard, new_card: ExportCard, out: Path) -> None:
    """Raises MismatchError when the export was made of another table than the one that has its name today."""
    for name in ("tokenizer", "space", "queries"):
        if getattr(card, name) != getattr(new_card, name):
            what = f"the {name} of the export and of the database differ"
            raise MismatchError(what, where=str(out), remedy=_EXPORT_AGAIN)
    for subset, table in card.tables.items():
        for name in ("queries", "k"):
            if table[name] != new_card.tables[subset][name]:
                what = f"its table '{table['name']}' has another '{name}' now"
                raise MismatchError(what, where=str(out), remedy=_EXPORT_AGAIN)


_EXPORT_AGAIN = "Export to a new folder. To stop updates from refreshing this one, delete it."


def _num_rows_without_position(source: ExportSource) -> int:
    return sum(int(np.count_nonzero(table.rows.positions(table.table.rows()) < 0)) for table in source.tables.values())
