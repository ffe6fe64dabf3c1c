"""Refreshing an export: it follows its database, and no chunk of it changes its position.

A chunk that was deleted since the export becomes padding at its position, as a neighbour and as a continuation. A repaired row
gets its new neighbours. Only files in which something changed are written. Chunks that were added after the export have no
position in formats whose readers find chunks by position: they are counted, and need a new export.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from retrodb.errors import MismatchError
from retrodb.export.card import ExportCard, write_card
from retrodb.export.export import engine_that_reaches, exported_view, planned_export, register_export
from retrodb.export.export_run import SCRATCH, ExportRun
from retrodb.export.folder import ExportFolder
from retrodb.export.formats import FORMATS
from retrodb.export.place import ExportPlace, read_card
from retrodb.export.record import recorded_export
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


def run_refresh(context: Context, place: ExportPlace, *, dry_run: bool = False) -> RefreshResult:
    """Bring an export up to date with the newest snapshot.

    Raises:
        UsageError: when there is no export.
        DamagedFileError: when its card or its record cannot be read.
        MismatchError: when its table or query set was rebuilt in another shape, or it is of another database.
    """
    card = read_card(place)
    view = exported_view(context)
    tables = {subset: NeighbourTable(view, str(table["name"])).name for subset, table in card.tables.items()}
    folder = place.present_folder()
    recorded_export(folder)
    with TemporaryDirectory(prefix="retrodb-export-") as temporary:
        scratch = Path(temporary) if dry_run else folder / SCRATCH
        plan = planned_export(view, tables, card.format, card.params, folder, scratch)
        try:
            with ExportRun(engine_that_reaches(context, place), plan) as run:
                result, new_card = _refresh(run, card, place, dry_run=dry_run)
            if not dry_run:
                place.publish(folder)
        except OSError as error:
            raise translate_os_error(error, place.name) from error
    if not dry_run:
        register_export(context, new_card)
    return result


def _refresh(
    run: ExportRun, card: ExportCard, place: ExportPlace, *, dry_run: bool
) -> tuple[RefreshResult, ExportCard]:
    new_card, facts = run.card(place.name)
    _check_same_origin(card, new_card, place.name)
    run.write_scratch()
    path, destination = Path(run.plan.folder), place.destination
    folder, states = ExportFolder(path, destination), run.states()
    index = run.index(states)
    files = [*run.files, *index]
    states |= {file.path: file.pieces[0].inputs_digest() for file in index}
    changed, removed = folder.outdated(files, states), folder.abandoned(states)
    has_positions = FORMATS[card.format].has_positions
    result = RefreshResult(
        path=place.name,
        format=card.format,
        table=card.table_name,
        snapshot=run.view.snapshot.number,
        changed=tuple(file.path for file in changed),
        removed=tuple(removed),
        num_unchanged_files=sum(1 for state in states.values() if state) - len(changed),
        must_reopen=(*(file.path for file in changed if file.must_reopen or destination is not None), *removed),
        num_rows_without_position=facts.num_rows_without_position if has_positions else 0,
        dry_run=dry_run,
    )
    if not dry_run:
        place.begin_refresh(path, [*result.changed, *removed])
        run.write(folder, changed)
        folder.remove(removed)
        folder.finish()
        write_card(path, new_card)
    return result, new_card


def list_exports(context: Context) -> list[ExportInfo]:
    """The registered exports, by id."""
    snapshot = context.view().snapshot
    entries = {name: snapshot.existing(ExportEntry, name) for name in snapshot.names(ExportEntry)}
    return [ExportInfo(name, entry.path, entry.format, entry.table, entry.snapshot) for name, entry in entries.items()]


def _check_same_origin(card: ExportCard, new_card: ExportCard, where: str) -> None:
    """Raises MismatchError when the export was made of another table than the one that has its name today."""
    for name in ("tokenizer", "space", "queries"):
        if getattr(card, name) != getattr(new_card, name):
            what = f"the {name} of the export and of the database differ"
            raise MismatchError(what, where=where, remedy=_EXPORT_AGAIN)
    for subset, table in card.tables.items():
        for name in ("queries", "k"):
            if table[name] != new_card.tables[subset][name]:
                what = f"its table '{table['name']}' has another '{name}' now"
                raise MismatchError(what, where=where, remedy=_EXPORT_AGAIN)


_EXPORT_AGAIN = "Export to a new folder. To stop updates from refreshing this one, delete it."
