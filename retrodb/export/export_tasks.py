"""The tasks of an export: the positions of a range of chunks, what the card says of a range, and the pieces of files.

A task names a snapshot, a format and the folder. Its process opens them once and describes the same files as the process that
planned it, so that a payload is small.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from retrodb.config import ExportParams
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.export.card import range_licences
from retrodb.export.dpr import count_without_target
from retrodb.export.export_file import ExportFile
from retrodb.export.export_source import ExportSource, TablePositions
from retrodb.export.formats import FORMATS
from retrodb.export.position_words import WORD
from retrodb.export.positions import ExportPositions, SpanRecord, live_span
from retrodb.export.record import WrittenPiece, read_record
from retrodb.stages.context import Context
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import Storage
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

STAGE_VERSION = 1


@dataclass(frozen=True)
class ExportPlan:
    """What an export shows, and where it is written."""

    database: str  # URL
    snapshot: int
    transaction: str  # of the snapshot
    format: str
    tables: tuple[tuple[str, str], ...]  # subset and table; the subset "" is the only one of an export without subsets
    params: ExportParams
    folder: str  # absolute path; it has the record with the positions
    scratch: str  # absolute path of files that are deleted in the end


class OpenedExport:
    """The source of an export and its files, opened in one process."""

    def __init__(self, plan: ExportPlan) -> None:
        self.view = snapshot_view(plan.database, plan.snapshot, plan.transaction)
        self._format = FORMATS[plan.format]
        tables = {subset: NeighbourTable(self.view, name) for subset, name in plan.tables}
        positions = _positions(Path(plan.folder), tables) if self._format.has_positions else {}
        empty = TablePositions(ExportPositions.empty(), ExportPositions.empty())
        by_subset = {subset: positions.get(subset, empty) for subset in tables}
        self.source = ExportSource.of_tables(tables, by_subset, plan.params, Path(plan.scratch))

    @cached_property
    def files(self) -> dict[str, ExportFile]:
        """By path. Raises UsageError and others for what the format cannot hold."""
        return {file.path: file for file in self._format.files(self.source)}

    @cached_property
    def scratch(self) -> dict[str, ExportFile]:
        """The files that the others are written from, by path."""
        return {file.path: file for file in self._format.scratch(self.source)}


opened_export = lru_cache(maxsize=1)(OpenedExport)
"""The export of a plan, opened once in each process."""


@lru_cache(maxsize=1)
def snapshot_view(database: str, snapshot: int, transaction: str) -> View:
    """A snapshot of a database, opened once in each process; its transaction tells databases apart that were at one path."""
    del transaction
    return Context(open_storage(database)).view(snapshot)


def _positions(folder: Path, tables: dict[str, NeighbourTable]) -> dict[str, TablePositions]:
    records = read_record(folder).positions
    opened = {name: ExportPositions.open(positions_file(folder, name), spans) for name, spans in records.items()}
    return {subset: TablePositions(opened[SELF], opened[table.query_set]) for subset, table in tables.items()}


def positions_file(folder: Path, query_set: str) -> Path:
    """The file with the positions of a query set."""
    return folder / f"retrodb-positions.{query_set}.bin"


@dataclass(frozen=True)
class PositionsPayload:
    """Give positions to the live chunks of a range."""

    database: str
    snapshot: int
    transaction: str
    query_set: str
    first_chunk: int
    num_chunks: int
    file: str  # absolute path
    first_word: int  # of the range, in the file


POSITIONS = TaskKind[PositionsPayload, SpanRecord]("export-positions", STAGE_VERSION, SpanRecord)


def run_positions(storage: Storage, task: Task[PositionsPayload, SpanRecord], clock: str) -> TaskRecord[SpanRecord]:
    """Write the words of one range."""
    del storage, clock
    payload = task.payload
    chunks = snapshot_view(payload.database, payload.snapshot, payload.transaction).query_set(payload.query_set)
    record, words = live_span(chunks, payload.first_chunk, payload.num_chunks)
    descriptor = os.open(payload.file, os.O_RDWR)
    try:
        os.pwrite(descriptor, words.tobytes(), payload.first_word * WORD.itemsize)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return TaskRecord(task.id, result=record)


@dataclass(frozen=True)
class CardFactsPayload:
    """Count the rows of a table in a range, or with subset None, find the licences of a range of the database."""

    plan: ExportPlan
    subset: str | None
    first: int
    count: int


@dataclass(frozen=True)
class RangeFacts:
    """What the card and the result of an export say of one range."""

    num_rows: int = 0  # live rows of the table
    num_rows_without_target: int = 0  # that dpr leaves out
    num_rows_without_position: int = 0  # that were added after the export
    licences: tuple[str, ...] = ()  # that the metadata of documents name
    source: str = ""  # of the documents


FACTS = TaskKind[CardFactsPayload, RangeFacts]("export-facts", STAGE_VERSION, RangeFacts)


def run_card_facts(storage: Storage, task: Task[CardFactsPayload, RangeFacts], clock: str) -> TaskRecord[RangeFacts]:
    """Read one range."""
    del storage, clock
    payload = task.payload
    opened = opened_export(payload.plan)
    if payload.subset is None:
        source, licences = range_licences(opened.view, payload.first, payload.count)
        return TaskRecord(task.id, result=RangeFacts(source=source, licences=tuple(licences)))
    source_of_table = opened.source.tables[payload.subset]
    rows = source_of_table.table.rows_in(payload.first, payload.count)
    facts = RangeFacts(
        num_rows=len(rows),
        num_rows_without_target=count_without_target(source_of_table, rows) if payload.plan.format == "dpr" else 0,
        num_rows_without_position=int((source_of_table.rows.positions(rows) < 0).sum()),
    )
    return TaskRecord(task.id, result=facts)


@dataclass(frozen=True)
class PiecePayload:
    """Write a piece of a file, or find out the digest of its inputs."""

    plan: ExportPlan
    path: str  # of the file
    number: int  # of the piece
    target: str | None  # absolute path of the file to write it into; None writes nothing
    is_scratch: bool = False  # whether the file is one that others are written from


PIECES = TaskKind[PiecePayload, WrittenPiece]("export-pieces", STAGE_VERSION, WrittenPiece)


def run_piece(storage: Storage, task: Task[PiecePayload, WrittenPiece], clock: str) -> TaskRecord[WrittenPiece]:
    """Handle one piece."""
    del storage, clock
    payload = task.payload
    opened = opened_export(payload.plan)
    file = (opened.scratch if payload.is_scratch else opened.files)[payload.path]
    target = None if payload.target is None else Path(payload.target)
    return TaskRecord(task.id, result=handled_piece(file, payload.number, target))


def handled_piece(file: ExportFile, number: int, target: Path | None) -> WrittenPiece:
    """The state of a piece, written into a file unless that is None."""
    piece = file.pieces[number]
    state = piece.inputs_digest()
    return WrittenPiece(state, piece.write(target) if target is not None and state else "")
