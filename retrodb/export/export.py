"""Exporting: the formats by name, and the card that every export carries.

A new export is written to a temporary folder beside its target and renamed when it is whole, so that a reader never sees half
of one. What an interrupted run has finished is kept: the same command goes on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from retrodb.engine.run import open_run
from retrodb.errors import UsageError
from retrodb.export.arrays import pieces_of_arrays
from retrodb.export.atlas import pieces_of_atlas
from retrodb.export.card import card_of
from retrodb.export.dpr import pieces_of_dpr
from retrodb.export.huggingface import pieces_of_huggingface
from retrodb.export.layout import ExportPositions
from retrodb.export.lucidrains import pieces_of_lucidrains
from retrodb.export.megatron import pieces_of_megatron
from retrodb.export.nemo import pieces_of_nemo
from retrodb.export.norlund import pieces_of_norlund
from retrodb.export.parquet import pieces_of_parquet
from retrodb.export.pieces import ExportFolder, Piece, write_whole
from retrodb.export.source import ExportSource, Layouts
from retrodb.format.entries import ExportEntry
from retrodb.format.json_values import to_plain_object
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import translate_os_error
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

CARD = "retrodb.json"


@dataclass(frozen=True)
class Format:
    """One trainer's format."""

    pieces: Callable[[ExportSource], list[Piece]]
    has_places: bool = True  # whether its reader finds chunks by position, so that their places have to stay


FORMATS: dict[str, Format] = {
    "parquet": Format(pieces_of_parquet, has_places=False),
    "huggingface": Format(pieces_of_huggingface, has_places=False),
    "arrays": Format(pieces_of_arrays),
    "megatron": Format(pieces_of_megatron),
    "lucidrains": Format(pieces_of_lucidrains),
    "norlund": Format(pieces_of_norlund),
    "nemo": Format(pieces_of_nemo),
    "dpr": Format(pieces_of_dpr, has_places=False),
    "atlas": Format(pieces_of_atlas),
}


@dataclass(frozen=True)
class ExportResult:
    """What was exported."""

    path: str
    format: str
    table: str
    snapshot: int
    rows: int
    files: int
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
    neighbours = NeighbourTable(shown_view(context, as_of), table)
    layouts = Layouts.of(neighbours) if FORMATS[to].has_places else Layouts(ExportPositions([]), ExportPositions([]))
    source = ExportSource(neighbours, layouts)
    pieces = FORMATS[to].pieces(source)
    snapshot = neighbours.view.snapshot
    num_rows = len(neighbours.rows())
    if dry_run:
        size = sum(piece.size_bytes for piece in pieces)
        return ExportResult(str(out), to, neighbours.name, snapshot.number, num_rows, len(pieces), size, True)
    card = card_of(source, to, out)
    plan = identity(card, snapshot.transaction)
    try:
        folder = _partial_folder(out, plan, layouts)
        brought = folder.bring_up_to_date(pieces, context.progress)
        write_card(folder.path, card)
        _replace(folder.path, out)
    except OSError as error:
        raise translate_os_error(error, str(out)) from error
    if is_registered:
        register(context, card)
    return ExportResult(
        str(out),
        to,
        neighbours.name,
        snapshot.number,
        num_rows,
        len(brought.written) + brought.kept,
        brought.size_bytes,
    )


def shown_view(context: Context, as_of: int | None = None) -> View:
    """The snapshot that an export shows: the one before registrations, which change nothing that is exported."""
    view = context.view(as_of)
    while view.snapshot.command == "export":
        parent = read_snapshot(context.storage, view.snapshot.parent)
        if parent.expired_at is not None:
            break
        view = View(context.storage, view.settings, parent)
    return view


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card of an export."""
    write_whole(folder / CARD, orjson.dumps(card, option=orjson.OPT_INDENT_2))


def register(context: Context, card: dict[str, Any]) -> None:
    """Make an export known to its database; nothing is committed when it is known as it is."""
    entry = ExportEntry(card["path"], card["format"], card["snapshot"], card["table"]["name"])
    view = context.view()
    key = f"export/{card['id']}"
    if view.snapshot.entry(ExportEntry, card["id"]) == entry:
        return
    plan = {"key": key, "previous": view.snapshot.entry(ExportEntry, card["id"]), "entry": entry}
    run = open_run(context.storage, "export", plan, context.clock)
    change = Change(
        transaction=run.id,
        command="export",
        arguments=to_plain_object(entry),
        clock=run.clock,
        conflict_keys=conflict_keys.export(card["id"]),
        entries={key: entry},
    )
    commit(context.storage, view.snapshot, change)


def _partial_folder(out: Path, plan: str, layouts: Layouts) -> ExportFolder:
    """The folder that an export is written to: that of an interrupted run of the same plan, or a new one."""
    temporary = out.with_name(f".{out.name}.partial")
    if temporary.exists() and ExportFolder.read(temporary).record.get("plan") == plan:
        return ExportFolder.read(temporary)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    folder = ExportFolder(temporary)
    folder.record |= {"plan": plan, "chunks": layouts.chunks.to_json(), "rows": layouts.rows.to_json()}
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
