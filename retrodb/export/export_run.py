"""One export or refresh as engine tasks: it plans records of files, and everything that reads chunks or rows is a task."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrodb.engine.run import Engine, Run, forget_run, open_run
from retrodb.engine.task import Task
from retrodb.errors import MismatchError, UsageError
from retrodb.export.card import ExportCard, make_card, merged_licences
from retrodb.export.export_file import ExportFile, state_of_pieces
from retrodb.export.export_tasks import (
    FACTS,
    PIECES,
    POSITIONS,
    CardFactsPayload,
    ExportPlan,
    OpenedExport,
    PiecePayload,
    PositionsPayload,
    RangeFacts,
    handled_piece,
    opened_export,
    positions_file,
    run_card_facts,
    run_piece,
    run_positions,
    snapshot_view,
)
from retrodb.export.folder import ExportFolder, PieceToWrite
from retrodb.export.formats import FORMATS
from retrodb.export.position_words import WORD, num_words
from retrodb.export.positions import SpanRecord
from retrodb.export.record import ExportRecord, WrittenPiece, read_record, write_record
from retrodb.format.json_codec import to_plain
from retrodb.stages.context import Context
from retrodb.store.digest import identity
from retrodb.store.open_storage import open_storage
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

SCRATCH = ".tasks"
"""Folder of an export's tasks below its own, while it is written."""
_ONE_PROCESS_BYTES = 1 << 26
"""Work up to this size is done in this process: other processes would take longer to start."""


@dataclass(frozen=True)
class ExportFacts:
    """What the tasks counted."""

    num_rows: int  # live rows of all tables
    num_rows_without_target: int
    num_rows_without_position: int
    licences: dict[str, list[str]]  # by source


class ExportRun:
    """The tasks of a plan.

    Attributes:
        id: equal for equal plans: what an earlier attempt has finished is kept.
    """

    def __init__(self, context: Context, plan: ExportPlan) -> None:
        self.plan, self._context = plan, context
        self.id = _run_id(plan)
        self._run = self._open_run()

    def _open_run(self) -> Run:
        """The run of the tasks. Its records are only as good as what is in the folder, and go together with it.

        They are in the folder, because a database may be read-only. Workers on other machines find them in the database.
        """
        scratch, engine = Path(self.plan.scratch), self._context.engine
        run = Run(open_storage(self.plan.scratch), self.id, "export", "")
        if not (scratch / "runs" / self.id).is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
            if engine.is_remote:
                forget_run(open_run(self._context.storage, "export", self.id))
            (scratch / "runs" / self.id).mkdir(parents=True)
        return open_run(self._context.storage, "export", self.id) if engine.is_remote else run

    def __enter__(self) -> ExportRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Forget what this process has opened. Delete what only the tasks needed, unless the same command can continue."""
        opened_export.cache_clear()
        snapshot_view.cache_clear()
        if kind is None or issubclass(kind, UsageError | MismatchError):
            shutil.rmtree(self.plan.scratch, ignore_errors=True)
            if self._context.engine.is_remote:
                forget_run(self._run)

    @property
    def view(self) -> View:
        """The snapshot in this process."""
        return snapshot_view(self.plan.database, self.plan.snapshot, self.plan.transaction)

    @property
    def opened(self) -> OpenedExport:
        """The export in this process."""
        return opened_export(self.plan)

    @property
    def files(self) -> list[ExportFile]:
        """The files that the format describes. Raises UsageError and others for what it cannot hold."""
        return list(self.opened.files.values())

    def begin(self) -> None:
        """Write the record of a new export, unless it is there: its plan, and the positions of all live chunks."""
        folder = Path(self.plan.folder)
        if read_record(folder).plan == self.id:
            return
        tables = [NeighbourTable(self.view, name) for _, name in self.plan.tables]
        query_sets = {SELF, *(table.query_set for table in tables)} if FORMATS[self.plan.format].has_positions else ()
        positions = {name: self._live_positions(name) for name in sorted(query_sets)}
        write_record(folder, ExportRecord(plan=self.id, positions=positions))

    def _live_positions(self, query_set: str) -> list[SpanRecord]:
        """Give positions to the live chunks of a query set: writes their file, gives the counts of its ranges."""
        plan = self.plan
        path = positions_file(Path(plan.folder), query_set)
        ranges = self.view.query_set(query_set).ranges
        tasks, word = [], 0
        for record in ranges:
            payload = PositionsPayload(
                plan.database,
                plan.snapshot,
                plan.transaction,
                query_set,
                record.first_chunk,
                record.num_chunks,
                str(path),
                word,
            )
            tasks.append(POSITIONS.task(payload, weight=record.num_chunks))
            word += num_words(record.num_chunks)
        with path.open("ab") as file:  # what an interrupted run has written stays
            file.truncate(word * WORD.itemsize)
        engine = self._engine(sum(record.num_chunks for record in ranges))
        results = engine.run(self._run, tasks, run_positions, self._context.progress, unit="chunks")
        return [record.result for record in results]

    def card(self, path: str) -> tuple[ExportCard, ExportFacts]:
        """The card of the export at an absolute path or URL, and what was counted for it."""
        facts = self.facts()
        return make_card(self.opened.source, self.plan.format, path, facts.num_rows, facts.licences), facts

    def facts(self) -> ExportFacts:
        """What the card and the result say of all rows and documents."""
        payloads = [
            CardFactsPayload(self.plan, subset, *span)
            for subset, source in self.opened.source.tables.items()
            for span in source.table.spans()
        ]
        view = self.view
        payloads += [CardFactsPayload(self.plan, None, *record.span) for record in view.chunks.ranges]
        tasks = [FACTS.task(payload, weight=payload.count) for payload in payloads]
        engine = self._engine(sum(task.weight for task in tasks))
        records = engine.run(self._run, tasks, run_card_facts, self._context.progress, unit="chunks")
        results: list[RangeFacts] = [record.result for record in records]
        return ExportFacts(
            num_rows=sum(facts.num_rows for facts in results),
            num_rows_without_target=sum(facts.num_rows_without_target for facts in results),
            num_rows_without_position=sum(facts.num_rows_without_position for facts in results),
            licences=merged_licences(view, ((facts.source, facts.licences) for facts in results)),
        )

    def write_scratch(self) -> None:
        """Write the files that others are written from."""
        folder = ExportFolder(Path(self.plan.scratch))
        files = list(self.opened.scratch.values())
        folder.update(self.id, folder.unwritten(files), lambda pieces: self._written(pieces, is_scratch=True))

    def states(self) -> dict[str, str]:
        """Path -> digest of everything that the content of a file depends on, "" for a file without rows."""
        tasks = [
            PIECES.task(PiecePayload(self.plan, file.path, number, None), weight=piece.size_bytes)
            for file in self.files
            if not file.is_fixed
            for number, piece in enumerate(file.pieces)
        ]
        engine = self._engine(sum(task.weight for task in tasks))
        records = engine.run(self._run, tasks, run_piece, self._context.progress, unit="B")
        of_pieces: dict[str, list[str]] = {}
        for task, record in zip(tasks, records, strict=True):
            of_pieces.setdefault(task.payload.path, []).append(record.result.state)
        return {
            file.path: file.pieces[0].inputs_digest() if file.is_fixed else state_of_pieces(of_pieces[file.path])
            for file in self.files
        }

    def write(self, folder: ExportFolder, files: Sequence[ExportFile]) -> None:
        """Write files of the format."""
        folder.update(self.id, files, self._written)

    def index(self, states: Mapping[str, str]) -> list[ExportFile]:
        """The files that name the others, from their states."""
        return FORMATS[self.plan.format].index(states)

    def _written(
        self, pieces: Sequence[PieceToWrite], *, is_scratch: bool = False
    ) -> Iterator[tuple[PieceToWrite, WrittenPiece]]:
        by_task: dict[str, PieceToWrite] = {}
        tasks: list[Task[PiecePayload, WrittenPiece]] = []
        for piece in pieces:
            if piece.file.is_fixed:
                yield piece, handled_piece(piece.file, piece.number, piece.target)
                continue
            payload = PiecePayload(self.plan, piece.file.path, piece.number, str(piece.target), is_scratch)
            tasks.append(PIECES.task(payload, weight=piece.file.pieces[piece.number].size_bytes))
            by_task[tasks[-1].id] = piece
        total = sum(task.weight for task in tasks)
        with self._context.progress.stage("export", total, "B") as bar:
            for task, record in self._engine(total).execute(self._run, tasks, run_piece, bar):
                bar.advance(task.weight)
                yield by_task[task.id], record.result

    def _engine(self, size: int) -> Engine:
        """The engine for work of so many bytes or chunks."""
        return self._context.engine.here() if size <= _ONE_PROCESS_BYTES else self._context.engine


def is_of_other_plan(plan: ExportPlan) -> bool:
    """Whether no attempt of the same plan began the folder of a plan."""
    run = _run_id(plan)
    return not (Path(plan.scratch) / "runs" / run).is_dir() and read_record(Path(plan.folder)).plan != run


def _run_id(plan: ExportPlan) -> str:
    return identity("export", to_plain(plan))
