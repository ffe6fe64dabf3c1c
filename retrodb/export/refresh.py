"""Refreshing an export: it follows its database without any chunk of it changing its place.

A chunk that was deleted since becomes padding where it stood, as a neighbour and as a continuation; a repaired row gets its new
neighbours. Only files in which something changed are written. What came into the database after the export was made has no
place in formats whose readers find chunks by position: it is counted, and needs a new export.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from retrodb.errors import DamagedFileError, MismatchError, UsageError
from retrodb.export.card import card_of
from retrodb.export.export import CARD, FORMATS, register, shown_view, write_card
from retrodb.export.layout import ExportPositions
from retrodb.export.pieces import ExportFolder
from retrodb.export.source import ExportSource, Layouts
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
    removed: tuple[str, ...]  # files whose rows are all gone
    kept: int  # files that were left alone
    must_reopen: tuple[str, ...]  # files of which running readers see the old content until they open them again
    without_place: int  # rows of the table that are not in the export: they came later
    dry_run: bool = False


@dataclass(frozen=True)
class ExportInfo:
    """A registered export."""

    id: str
    path: str
    format: str
    table: str
    snapshot: int  # that it shows


def read_card(out: Path) -> dict[str, Any]:
    """The card of an export.

    Raises:
        UsageError: when there is no export at this place.
        DamagedFileError: when its card is no JSON.
    """
    if not (out / CARD).is_file():
        raise UsageError("is no export of retrodb", where=str(out), remedy="Name the folder of an export.")
    try:
        card: dict[str, Any] = orjson.loads((out / CARD).read_bytes())
    except orjson.JSONDecodeError as error:
        raise DamagedFileError("damaged card", where=str(out / CARD), remedy="Export again.") from error
    return card


def run_refresh(context: Context, out: Path, *, dry_run: bool = False) -> RefreshResult:
    """Bring an export up to date with the newest snapshot.

    Raises:
        UsageError: when there is no export at this place.
        MismatchError: when its table or query set was made anew in another shape, or it is of another database.
    """
    card = read_card(out)
    table = NeighbourTable(shown_view(context), card["table"]["name"])
    folder = ExportFolder.read(out)
    source = ExportSource(table, _layouts(folder))
    fresh = card_of(source, card["format"], out)
    _refuse_another(card, fresh, out)
    pieces = FORMATS[card["format"]].pieces(source)
    without_place = _without_place(source) if FORMATS[card["format"]].has_places else 0
    changed, removed = folder.outdated(pieces), folder.abandoned(pieces)
    result = RefreshResult(
        str(out),
        card["format"],
        table.name,
        table.view.snapshot.number,
        tuple(piece.path for piece in changed),
        tuple(removed),
        len(pieces) - len(changed),
        (*(piece.path for piece in changed if piece.must_reopen), *removed),
        without_place,
        dry_run,
    )
    if dry_run:
        return result
    try:
        folder.bring_up_to_date(pieces, context.progress)
        write_card(out, fresh)
    except OSError as error:
        raise translate_os_error(error, str(out)) from error
    register(context, fresh)
    return result


def list_exports(context: Context) -> list[ExportInfo]:
    """The registered exports, by id."""
    snapshot = context.view().snapshot
    entries = {name: snapshot.existing(ExportEntry, name) for name in snapshot.names(ExportEntry)}
    return [ExportInfo(name, **vars(entry)) for name, entry in entries.items()]


def _layouts(folder: ExportFolder) -> Layouts:
    chunks, rows = folder.record["chunks"], folder.record["rows"]
    layout = ExportPositions.from_json(chunks)
    return Layouts(layout, layout if rows == chunks else ExportPositions.from_json(rows))


def _refuse_another(card: dict[str, Any], fresh: dict[str, Any], out: Path) -> None:
    """Raises MismatchError when the export is of something else than the table that has its name today."""
    for what in ("tokenizer", "space", "queries"):
        if card[what] != fresh[what]:
            raise MismatchError(f"the {what} of the export and of the database differ", where=str(out), remedy=_AGAIN)
    for what in ("queries", "k"):
        if card["table"][what] != fresh["table"][what]:
            raise MismatchError(f"its table has another '{what}' now", where=str(out), remedy=_AGAIN)


_AGAIN = "Export to a new folder; updates leave this one alone once it is deleted."


def _without_place(source: ExportSource) -> int:
    rows = source.table.rows()
    return int(np.count_nonzero(source.rows.places(rows) < 0))
