"""Exporting: the formats by name, writing an export, and registering it in the database.

A new export is written to a temporary folder next to its target and renamed when it is complete, so that a reader never sees
half of one. What an interrupted run has finished is kept: the same command continues from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retrodb.errors import UsageError
from retrodb.export.arrays import arrays_files
from retrodb.export.atlas import atlas_files
from retrodb.export.card import CARD, ExportCard, make_card, write_card
from retrodb.export.dpr import dpr_files
from retrodb.export.export_source import ExportSource, TablePositions
from retrodb.export.folder import ExportFile, ExportFolder, ExportRecord
from retrodb.export.huggingface import huggingface_files
from retrodb.export.lucidrains import lucidrains_files
from retrodb.export.megatron import megatron_files
from retrodb.export.nemo import nemo_files
from retrodb.export.norlund import norlund_files
from retrodb.export.parquet import parquet_files
from retrodb.format.entries import ExportEntry, entry_key
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import translate_os_error
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View


@dataclass(frozen=True)
class ExportFormat:
    """The format of one trainer."""

    files: Callable[[ExportSource], list[ExportFile]]
    has_positions: bool = True  # whether its reader finds chunks by position, so that positions must never change


FORMATS: dict[str, ExportFormat] = {
    "parquet": ExportFormat(parquet_files, has_positions=False),
    "huggingface": ExportFormat(huggingface_files, has_positions=False),
    "arrays": ExportFormat(arrays_files),
    "megatron": ExportFormat(megatron_files),
    "lucidrains": ExportFormat(lucidrains_files),
    "norlund": ExportFormat(norlund_files),
    "nemo": ExportFormat(nemo_files),
    "dpr": ExportFormat(dpr_files, has_positions=False),
    "atlas": ExportFormat(atlas_files),
}


@dataclass(frozen=True)
class ExportResult:
    """What was exported."""

    path: str
    format: str
    table: str
    snapshot: int
    num_rows: int
    num_files: int
    size_bytes: int  # written, or estimated by a dry run
    dry_run: bool = False


def run_export(
    context: Context,
    out: Path,
    *,
    to: str = "parquet",
    table: str | None = None,
    as_of: int | None = None,
    is_registered: bool = True,
    dry_run: bool = False,
) -> ExportResult:
    """Write a neighbour table with its texts in a trainer's format, and register the export unless told otherwise.

    Raises:
        UsageError: for an unknown format, or a target that exists and is no export.
        MissingStep: when there is no such table.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown format '{to}'", remedy=f"Known are: {', '.join(FORMATS)}.")
    if out.exists() and not (out / CARD).is_file():
        raise UsageError("exists and is no export of retrodb", where=str(out), remedy="Choose another folder.")
    neighbours = NeighbourTable(exported_view(context, as_of), table)
    positions = TablePositions.of_live(neighbours) if FORMATS[to].has_positions else TablePositions.empty()
    source = ExportSource(neighbours, positions)
    files = FORMATS[to].files(source)

    def result(num_files: int, size_bytes: int) -> ExportResult:
        number, num_rows = neighbours.view.snapshot.number, len(neighbours.rows())
        return ExportResult(str(out), to, neighbours.name, number, num_rows, num_files, size_bytes, dry_run)

    if dry_run:
        return result(len(files), sum(file.size_bytes for file in files))
    card = make_card(source, to, out)
    try:
        folder = _partial_folder(out, identity(card, neighbours.view.snapshot.transaction), positions)
        update = folder.update(files, context.progress)
        write_card(folder.path, card)
        _replace(folder.path, out)
    except OSError as error:
        raise translate_os_error(error, str(out)) from error
    if is_registered:
        register_export(context, card)
    return result(len(update.written) + update.num_unchanged, update.size_bytes)


def exported_view(context: Context, as_of: int | None = None) -> View:
    """The snapshot that an export shows: the last one before registrations, which change nothing that is exported."""
    view = context.view(as_of)
    while view.snapshot.command == "export":
        parent = read_snapshot(context.storage, view.snapshot.parent)
        if parent.expired_at is not None:
            break
        view = View(context.storage, view.settings, parent)
    return view


def register_export(context: Context, card: ExportCard) -> None:
    """Record an export in its database. Nothing is committed when the same record is there already."""
    entry = ExportEntry(card.path, card.format, card.snapshot, card.table_name)
    view = context.view()
    previous = view.snapshot.entry(ExportEntry, card.id)
    if previous == entry:
        return
    transaction = Transaction.open(
        context,
        view,
        "export",
        conflict_keys.export(card.id),
        plan={"key": entry_key(ExportEntry, card.id), "previous": previous, "entry": entry},
        arguments=entry,
    )
    transaction.set_entry(card.id, entry)
    transaction.commit()


def _partial_folder(out: Path, plan: str, positions: TablePositions) -> ExportFolder:
    """The folder that an export is written to: that of an interrupted run of the same plan, or a new one."""
    temporary = out.with_name(f".{out.name}.partial")
    if temporary.exists() and (folder := ExportFolder.read(temporary)).record.plan == plan:
        return folder
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    record = ExportRecord(plan=plan, chunks=positions.chunks.to_records(), rows=positions.rows.to_records())
    folder = ExportFolder(temporary, record)
    folder.save()
    return folder


def _replace(temporary: Path, out: Path) -> None:
    """Put the new folder in the place of the old one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(temporary, out)
    shutil.rmtree(old, ignore_errors=True)
