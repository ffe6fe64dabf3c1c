"""Vectors that need no computation, because a chunk with the same text has one in the space already.

Equal texts have equal xxh3-128 hashes in the `hashes` files. All new rows of a run are joined at once with all rows that have
a vector, in tasks that read runs of rows sorted by hash:

    new rows ──NEW_RUN──> sorted runs ──FILTER──> two tables of bits of the new hashes
    old rows ──OLD_RUN──> sorted runs of the rows that both tables have
    both runs ──JOIN, by ranges of hashes──> for new rows the place of an existing vector

So one new document reads the hashes of the old rows once and writes next to nothing, and many new documents read everything
once, write it once, and read it once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate

from retrodb.engine.groups import groups_of
from retrodb.engine.run import add_counts
from retrodb.engine.task import NoResult, TaskRecord
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.embed.embed_plan import EmbedPlan
from retrodb.stages.embed.reuse_tasks import (
    FILTER,
    JOIN,
    NEW_RUN,
    OLD_RUN,
    FilterPayload,
    NewRunPayload,
    OldRunPayload,
    ReusableVectors,
    ReuseJoinPayload,
    VectorFile,
    run_filter_tables,
    run_new_run,
    run_old_run,
    run_reuse_join,
)
from retrodb.stages.file_list import publish_file_list
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.stages.transaction import Transaction

_RUN_ROWS = 1 << 22  # rows of a task: 128 MiB of a sorted run
_JOIN_BYTES = 130  # of a row of a range that is joined: its entry, and copies while runs are merged
_FILTER_BYTES = 40  # of a new row: its cell while a run is read, and at most 16 cells in each of two tables
_MIN_FILE_ROWS = 1 << 13  # what a file counts at least, so that a task reads at most 512 files
_SMALL_ROWS = 1 << 25  # that one process filters before others have started


def find_reusable(
    transaction: Transaction, plan: EmbedPlan, samples: Sequence[VectorFile] = ()
) -> ReusableVectors | None:
    """Find existing vectors of the texts of all pending rows. Of several files that have a text the first is used.

    Args:
        samples: further files of vectors, after those of the space.

    Returns:
        None when there is no vector that could be reused.
    """
    records = plan.view.coverage("vectors", plan.space).records
    files = [*(VectorFile(record) for record in records), *samples]
    if not files or not plan.pending:
        return None
    new_runs = _new_runs(transaction, plan)
    old_runs, num_old = _old_runs(transaction, plan, files, new_runs)
    num_rows = num_old + sum(part.num_rows for part in plan.pending)
    num_ranges = num_rows // _RUN_ROWS + 1
    tasks = [
        JOIN.task(ReuseJoinPayload(transaction.run.id, new_runs, old_runs, number, num_ranges))
        for number in range(num_ranges)
    ]
    extra_bytes = _JOIN_BYTES * min(num_rows, _RUN_ROWS)
    joined = transaction.run_tasks(tasks, run_reuse_join, extra_bytes=extra_bytes, unit="ranges")
    return ReusableVectors(
        _file_list(transaction, "vectors", [file.vectors for file in files]),
        _file_list(transaction, "matches", _files_of(joined)),
    )


def _files_of(records: Iterable[TaskRecord[NoResult]]) -> list[FileRecord]:
    return [file for record in records for file in record.files]


def _file_list(transaction: Transaction, name: str, files: Sequence[FileRecord]) -> FileRecord:
    return publish_file_list(transaction.run.storage, transaction.run.id, f"reuse-{name}", files)


def _new_runs(transaction: Transaction, plan: EmbedPlan) -> FileRecord:
    """The pending rows, sorted by hash in each run: a list of files."""
    groups = list(groups_of(plan.pending, lambda part: max(part.num_rows, _MIN_FILE_ROWS), _RUN_ROWS))
    first_parts = accumulate((len(group) for group in groups), initial=0)
    tasks = []
    for group, first_part in zip(groups, first_parts, strict=False):
        payload = NewRunPayload(transaction.run.id, plan.space, group, first_part)
        tasks.append(NEW_RUN.task(payload, weight=sum(part.num_rows for part in group)))
    function = partial(run_new_run, snapshot=PlannedSnapshot.of(plan.view))
    records = transaction.run_tasks(tasks, function, unit="chunks")
    return _file_list(transaction, "new", _files_of(records))


def _old_runs(
    transaction: Transaction, plan: EmbedPlan, files: Sequence[VectorFile], new_runs: FileRecord
) -> tuple[FileRecord, int]:
    """The rows with a vector whose text a pending row may have, sorted by hash in each run: a list of files, and their number."""
    num_new = sum(part.num_rows for part in plan.pending)
    run = transaction.run.id
    filters = transaction.run_tasks(
        [FILTER.task(FilterPayload(run, new_runs, num_new))],
        run_filter_tables,
        extra_bytes=_FILTER_BYTES * min(num_new, _RUN_ROWS),
        unit="filters",
    )
    filter_file = next(iter(_files_of(filters)), None)
    groups = list(groups_of(files, lambda file: max(file.vectors.num_rows, _MIN_FILE_ROWS), _RUN_ROWS))
    first_files = accumulate((len(group) for group in groups), initial=0)
    tasks = []
    for group, first_file in zip(groups, first_files, strict=False):
        payload = OldRunPayload(run, group, first_file, _hashes_of(plan, group), filter_file)
        tasks.append(OLD_RUN.task(payload, weight=sum(file.vectors.num_rows for file in group)))
    is_small = sum(file.vectors.num_rows for file in files) < _SMALL_ROWS
    engine = transaction.context.engine.here() if is_small else None
    records = transaction.run_tasks(tasks, run_old_run, engine=engine, unit="chunks")
    return _file_list(transaction, "old", _files_of(records)), add_counts(records).get("rows", 0)


def _hashes_of(plan: EmbedPlan, files: Sequence[VectorFile]) -> tuple[FileRecord, ...]:
    """The files with the text hashes of the rows of files of vectors, by ascending first chunk."""
    chunks = plan.view.chunks
    whole = ChunkRange(0, chunks.end)
    hashes = {
        record.path: record
        for file in files
        for record in chunks.overlapping("hashes", *(file.vectors.span if file.ids is None else whole))
    }
    return tuple(sorted(hashes.values(), key=lambda record: record.first_chunk))
