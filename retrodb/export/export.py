"""Exporting: writing an export, and registering it in the database.

A new export is written to a temporary folder next to its target and renamed when it is complete, so that a reader never sees
half of one. What an interrupted run has finished is kept: the same command continues from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from retrodb.config import ExportParams
from retrodb.errors import RetroDBError, UsageError
from retrodb.export.card import ExportCard, write_card
from retrodb.export.export_file import ExportFile
from retrodb.export.export_params import check_format_params
from retrodb.export.export_run import SCRATCH, ExportFacts, ExportRun, is_of_other_plan
from retrodb.export.export_tasks import ExportPlan
from retrodb.export.folder import ExportFolder
from retrodb.export.formats import FORMATS
from retrodb.export.megatron import megatron_counts
from retrodb.export.place import ExportPlace
from retrodb.format.entries import ExportEntry, entry_key
from retrodb.stages.context import Context
from retrodb.stages.queries.megatron import SUBSETS
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import translate_os_error
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View


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
    place: ExportPlace,
    *,
    to: str = "parquet",
    table: str | Mapping[str, str] | None = None,
    params: ExportParams | None = None,
    as_of: int | str | None = None,
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
    check_outside(context, place)
    place.check_free()
    view = exported_view(context, as_of)
    tables = {subset: NeighbourTable(view, name).name for subset, name in names.items()}
    if not dry_run:
        folder = place.new_folder()
        plan = planned_export(view, tables, to, params, folder, folder / SCRATCH)
        return _written_export(engine_that_reaches(context, place), plan, place, is_registered=is_registered)
    with TemporaryDirectory(prefix="retrodb-export-") as temporary:
        folder = Path(temporary)
        plan = planned_export(view, tables, to, params, folder, folder / SCRATCH)
        with ExportRun(context, plan) as run:
            run.begin()
            files = [*run.files, *_planned_index(run, run.files)]
            card, facts = run.card(place.name)
            result = _result(run, card, facts)
    return replace(result, num_files=len(files), size_bytes=sum(file.size_bytes for file in files), dry_run=True)


def planned_export(
    view: View, tables: Mapping[str, str], to: str, params: ExportParams, folder: Path, scratch: Path
) -> ExportPlan:
    """The plan of an export.

    Args:
        tables: by subset.
        folder: that the export is written to.
        scratch: for the files of its tasks.
    """
    return ExportPlan(
        database=view.storage.url,
        snapshot=view.snapshot.number,
        transaction=view.snapshot.transaction,
        format=to,
        tables=tuple(tables.items()),
        params=params,
        folder=str(folder.absolute()),
        scratch=str(scratch.absolute()),
    )


def check_outside(context: Context, place: ExportPlace) -> None:
    """Raises UsageError for a place in a store that is in the database. In a directory `check` lists it as foreign."""
    database = context.storage.url.rstrip("/")
    if place.destination is not None and f"{place.name}/".startswith(f"{database}/"):
        remedy = "Export to a place outside of it."
        raise UsageError("this place is in the database", where=place.name, remedy=remedy)


def engine_that_reaches(context: Context, place: ExportPlace) -> Context:
    """The context with an engine whose tasks reach the folder in which the files are written."""
    if place.destination is not None and context.engine.is_remote:
        return replace(context, engine=context.engine.here())
    return context


def _written_export(context: Context, plan: ExportPlan, place: ExportPlace, *, is_registered: bool) -> ExportResult:
    """Write an export, or continue to write it, and put it into its place."""
    folder = Path(plan.folder)
    try:
        if is_of_other_plan(plan):
            place.discard(folder)
        with ExportRun(context, plan) as run:
            run.begin()
            files = _described_files(run, place)
            card, facts = run.card(place.name)
            run.write_scratch()
            place.begin(folder, [file.path for file in (*files, *_planned_index(run, files))])
            export = ExportFolder(folder, place.destination)
            run.write(export, export.unwritten(files))
            states = {file.path: written.state for file in files if (written := export.record.files.get(file.path))}
            run.write(export, export.unwritten(run.index(states)))
            result = _result(run, card, facts)
        update = export.finish()
        write_card(folder, card)
        place.publish(folder)
    except OSError as error:
        raise translate_os_error(error, place.name) from error
    if is_registered:
        register_export(context, card)
    return replace(result, num_files=update.num_files, size_bytes=update.size_bytes)


def _described_files(run: ExportRun, place: ExportPlace) -> list[ExportFile]:
    """The files of a new export. Nothing is left of one that its format refuses."""
    try:
        return run.files
    except RetroDBError:
        place.discard(Path(run.plan.folder))
        raise


def _planned_index(run: ExportRun, files: Sequence[ExportFile]) -> list[ExportFile]:
    """The files that name the others, before these are written."""
    return run.index({file.path: "planned" for file in files})


def _result(run: ExportRun, card: ExportCard, facts: ExportFacts) -> ExportResult:
    """What is known before the files are written."""
    counts = megatron_counts(run.opened.source) if run.plan.format == "megatron" else None
    return ExportResult(
        path=card.path,
        format=card.format,
        table=card.table_name,
        snapshot=card.snapshot,
        num_rows=card.rows,
        num_files=0,
        size_bytes=0,
        num_rows_without_target=facts.num_rows_without_target if run.plan.format == "dpr" else None,
        subsets=() if counts is None else tuple(SubsetCounts(*count) for count in counts.subsets),
        notes=() if counts is None else counts.notes,
    )


def exported_view(context: Context, as_of: int | str | None = None) -> View:
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
