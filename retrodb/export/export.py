"""Exporting: the formats by name, writing an export, and registering it in the database.

A new export is written to a temporary folder next to its target and renamed when it is complete, so that a reader never sees
half of one. What an interrupted run has finished is kept: the same command continues from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from retrodb.config import ExportParams
from retrodb.errors import UsageError
from retrodb.export.arrays import arrays_files
from retrodb.export.atlas import atlas_files
from retrodb.export.card import CARD, ExportCard, make_card, write_card
from retrodb.export.dpr import dpr_files, num_rows_without_target
from retrodb.export.export_params import check_format_params
from retrodb.export.export_source import ExportSource, TablePositions
from retrodb.export.folder import ExportFile, ExportFolder, ExportRecord
from retrodb.export.huggingface import huggingface_files
from retrodb.export.lucidrains import lucidrains_files
from retrodb.export.megatron import megatron_counts, megatron_files
from retrodb.export.nemo import nemo_files
from retrodb.export.norlund import norlund_files
from retrodb.export.parquet import parquet_files
from retrodb.format.entries import ExportEntry, entry_key
from retrodb.stages.context import Context
from retrodb.stages.queries.megatron import SUBSETS
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
    has_subsets: bool = False  # whether one export can hold a table for each of `SUBSETS`


FORMATS: dict[str, ExportFormat] = {
    "parquet": ExportFormat(parquet_files, has_positions=False),
    "huggingface": ExportFormat(huggingface_files, has_positions=False),
    "arrays": ExportFormat(arrays_files),
    "megatron": ExportFormat(megatron_files, has_subsets=True),
    "lucidrains": ExportFormat(lucidrains_files),
    "norlund": ExportFormat(norlund_files),
    "nemo": ExportFormat(nemo_files),
    "dpr": ExportFormat(dpr_files, has_positions=False),
    "atlas": ExportFormat(atlas_files),
}


@dataclass(frozen=True)
class SubsetCounts:
    """What a Megatron project has for one subset."""

    subset: str
    table: str
    num_rows: int  # chunks of the table's query set
    num_samples: int


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
    num_rows_without_target: int | None = (
        None  # left out, because nothing follows them; None where the format keeps all
    )
    subsets: tuple[SubsetCounts, ...] = ()  # of a Megatron project
    notes: tuple[str, ...] = ()  # what the trainer has to be told
    dry_run: bool = False


def run_export(
    context: Context,
    out: Path,
    *,
    to: str = "parquet",
    table: str | Mapping[str, str] | None = None,
    params: ExportParams | None = None,
    as_of: int | None = None,
    is_registered: bool = True,
    dry_run: bool = False,
) -> ExportResult:
    """Write a neighbour table with its texts in a trainer's format, and register the export unless told otherwise.

    Args:
        table: None for "self"; a mapping from subset (train, valid, test) to table for a format that has subsets.

    Raises:
        UsageError: for an unknown format, parameters or subsets that it lacks, or a target that exists and is no export.
        MissingStep: when there is no such table.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown format '{to}'", remedy=f"Known are: {', '.join(FORMATS)}.")
    params = params or ExportParams()
    check_format_params(params, to)
    names = _names_by_subset(table, to)
    if out.exists() and not (out / CARD).is_file():
        raise UsageError("exists and is no export of retrodb", where=str(out), remedy="Choose another folder.")
    view = exported_view(context, as_of)
    tables = {subset: NeighbourTable(view, name) for subset, name in names.items()}
    positions = _positions(tables, FORMATS[to])
    source = ExportSource.of_tables(tables, positions, params)
    files = FORMATS[to].files(source)
    card = make_card(source, to, out)

    def result(num_files: int, size_bytes: int) -> ExportResult:
        counts = megatron_counts(source) if to == "megatron" else None
        return ExportResult(
            path=str(out),
            format=to,
            table=card.table_name,
            snapshot=view.snapshot.number,
            num_rows=card.rows,
            num_files=num_files,
            size_bytes=size_bytes,
            num_rows_without_target=num_rows_without_target(source) if to == "dpr" else None,
            subsets=() if counts is None else tuple(SubsetCounts(*count) for count in counts.subsets),
            notes=() if counts is None else counts.notes,
            dry_run=dry_run,
        )

    if dry_run:
        return result(len(files), sum(file.size_bytes for file in files))
    try:
        folder = _partial_folder(out, identity(card, view.snapshot.transaction), positions)
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


def _names_by_subset(table: str | Mapping[str, str] | None, to: str) -> dict[str, str | None]:
    """The tables in the order of the subsets; "" stands for no subset."""
    if table is None or isinstance(table, str):
        return {"": table}
    if not table:
        raise UsageError("no table", remedy="Name at least one.")
    if not FORMATS[to].has_subsets:
        with_subsets = ", ".join(name for name, known in FORMATS.items() if known.has_subsets)
        what = f"the format '{to}' holds one table"
        raise UsageError(what, remedy=f"Give one table without a subset, or export with --to {with_subsets}.")
    for subset in table:
        if subset not in SUBSETS:
            raise UsageError(f"unknown subset '{subset}'", remedy=f"Known are: {', '.join(SUBSETS)}.")
    return {subset: table[subset] for subset in SUBSETS if subset in table}


def _positions(tables: Mapping[str, NeighbourTable], export_format: ExportFormat) -> dict[str, TablePositions]:
    """The positions of each table; those of the database's chunks are the same for all."""
    positions: dict[str, TablePositions] = {}
    for subset, table in tables.items():
        if not export_format.has_positions:
            positions[subset] = TablePositions.empty()
            continue
        before = next(iter(positions.values()), None)
        positions[subset] = TablePositions.of_live(table, before.chunks if before else None)
    return positions


def _partial_folder(out: Path, plan: str, positions: Mapping[str, TablePositions]) -> ExportFolder:
    """The folder that an export is written to: that of an interrupted run of the same plan, or a new one."""
    temporary = out.with_name(f".{out.name}.partial")
    if temporary.exists() and (folder := ExportFolder.read(temporary)).record.plan == plan:
        return folder
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    first, *further = positions
    record = ExportRecord(
        plan=plan,
        chunks=positions[first].chunks.to_records(),
        rows=positions[first].rows.to_records(),
        subset_rows={subset: positions[subset].rows.to_records() for subset in further},
    )
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
