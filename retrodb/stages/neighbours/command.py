"""Stage neighbours: for every row of a query set its nearest live chunks of a space.

Exclusions act inside the search, so a row has too few neighbours only when the database has too few. Rows keep some spare
neighbours beyond k: a later deletion then costs no new search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exclusion import NO_KEY, Exclusion, ExclusionKeys, Ragged
from retrodb.ann.recall_curve import recall_at_k
from retrodb.ann.rerank import LivePart
from retrodb.ann.topk import TopK
from retrodb.config import DEFAULT_MEMORY_BYTES, NeighboursParams, from_mapping
from retrodb.engine.run import add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import MissingStep, UsageError
from retrodb.format.arrays import AnyArray, Float32Array, Int64Array
from retrodb.format.entries import IndexEntry, SpaceEntry, TableEntry
from retrodb.format.json_values import to_plain_object
from retrodb.format.parquet import read_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import EXCLUSIONS, database_keys, live_parts, missing_rows, open_codebook, parts_of
from retrodb.stages.index.operating_point import EXACT, SAMPLE_ROWS, OperatingPoint, measure, stored_point
from retrodb.stages.neighbours.block_join import JoinHardware, exact_of, join_rows
from retrodb.stages.neighbours.restriction import chosen_documents
from retrodb.stages.neighbours.table_rows import (
    allowed_ids,
    planned_view,
    publish_joined,
    publish_rows,
    query_ids,
    spans_of,
    table_dependencies,
)
from retrodb.stages.queries.sequence_keys import sequence_documents
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import ComparedSets
from retrodb.view.coverage import Coverage
from retrodb.view.view import SELF, View

STAGE_VERSION = 1
_SAMPLE_SPANS = 16  # of the tasks' rows, that the sample for the operating point is drawn from


@dataclass(frozen=True)
class NeighboursResult:
    """What a neighbours run did."""

    snapshot: int
    table: str
    query_set: str
    space: str
    rows: int  # of the table
    k: int
    spare_neighbours: int
    short: int  # rows with fewer than k neighbours: the database has no more for them
    lists_probed: int  # per row, out of all lists; 0 for an exact product
    recall: float  # of the k neighbours, that these lists were chosen for
    recall_reached: float | None  # of the table, measured on a sample of its rows; None before it is there
    dry_run: bool = False
    codes_recall: float | None = None  # recall@10 of the codes, which all of this rests on where no vectors are kept


def run_neighbours(
    context: Context,
    params: NeighboursParams,
    *,
    queries: str = SELF,
    space: str | None = None,
    table: str | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    device: str = "auto",
    dry_run: bool = False,
) -> NeighboursResult:
    """Compute a neighbour table whole.

    Args:
        memory_bytes, device: what the join may use; they change no byte of the table but, with another device, ties of
            candidates at the last place before the exact distances decide.

    Raises:
        MissingStep: when the space or the query set is not embedded, or the space not indexed.
        UsageError: for parameters or a query set that cannot be meant, or a device that is not there.
    """
    view = context.view()
    name = space or view.snapshot.default_space
    table = table or (queries if space is None else f"{queries}-{space}")
    _check(params, table)
    hardware = JoinHardware(context.num_workers, memory_bytes, chosen_device(device))
    view.query_set(queries)  # raises when there is none
    codebook = open_codebook(view, name)
    refuse_missing(view, queries, name)
    spans = spans_of(view, queries)
    previous = view.snapshot.entry(TableEntry, table)
    entry = TableEntry(
        queries=queries, space=name, state=state_of(view), dependencies=table_dependencies(view, queries, name, params),
        **vars(params), nprobe=0, num_rows=0, num_short=0, recall_expected=params.recall, snapshot=view.snapshot.number,
    )  # fmt: skip
    is_unchanged = previous is not None and previous.is_of_same_origin(entry)
    sample = _Sample(view, queries, name, params, spans, hardware.threads)
    point = _chosen_point(view, codebook, name, params, previous if is_unchanged else None, sample)
    entry = replace(entry, nprobe=point.nprobe, recall_expected=point.recall)
    index = view.snapshot.entry(IndexEntry, name)
    result = NeighboursResult(
        view.snapshot.number, table, queries, name, 0, params.k, params.spare_neighbours, 0, point.nprobe, point.recall,
        None, dry_run, index.codes_recall if index else None,
    )  # fmt: skip
    if dry_run:
        rows = sum(len(query_ids(view, queries, name, *span)) for span in spans)
        return replace(result, rows=rows)
    if previous and is_unchanged and previous.nprobe == point.nprobe:  # nothing that the table follows from has changed
        return replace(result, recall_reached=previous.recall_reached, rows=previous.num_rows, short=previous.num_short)
    details = to_plain_object(entry)
    plan = {"version": STAGE_VERSION, "table": table, "previous": previous, "entry": entry}
    run = open_run(context.storage, "neighbours", plan, context.clock)
    tasks = [_task(view, table, details, *span) for span in spans]
    function = partial(run_neighbours_task, hardware=hardware)
    # One process: its threads keep all cores busy, and what the database side holds is there once.
    records = context.engine.with_processes(1).run(run, tasks, function, context.progress)
    counts = {"rows": 0, "short": 0, **add_counts(records)}
    files = [file for record in records for file in record.files]
    reached = 1.0 if point.nprobe == 0 else sample.recall_of(context.storage, files)
    joined = ComparedSets.of(
        allowed_ids(database_side(view, name, params)),
        (file.first_chunk + file.row_set.present for file in files),
    )
    replaced = [*view.manifest.files("neighbours", table), *view.manifest.files("joined", table)]
    if previous is None or (previous.queries, previous.space) != (queries, name):
        replaced += view.manifest.files("edits", table)  # they speak of other rows, or other distances
    change = Change(
        transaction=run.id,
        command="neighbours",
        arguments=details,
        clock=run.clock,
        conflict_keys=conflict_keys.neighbours(table, name),
        files=[*files, publish_joined(context.storage, table, run.id, joined)],
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in replaced],
        entries={
            f"table/{table}": replace(entry, num_rows=counts["rows"], num_short=counts["short"], recall_reached=reached)
        },
        counts=counts,
    )
    snapshot = commit(context.storage, view.snapshot, change)
    return replace(result, snapshot=snapshot.number, recall_reached=reached, rows=counts["rows"], short=counts["short"])


def chosen_device(device: str) -> str:
    """`cpu`, or the device of PyTorch that is there and was asked for; `auto` takes a CUDA GPU where there is one.

    Raises:
        UsageError: it is not there, or not known.
    """
    if device == "cpu":
        return device
    from retrodb.encode.device import choose_compute

    chosen = choose_compute(device).device
    return chosen if chosen.startswith("cuda") or device != "auto" else "cpu"


_ONE_THREAD = JoinHardware()


def run_neighbours_task(
    storage: Storage, task: Task[Any, Any], clock: str, *, hardware: JoinHardware = _ONE_THREAD
) -> TaskRecord[Any]:
    """The neighbours of one range of query rows; the hardware changes no byte of them."""
    del clock
    payload = task.payload
    params = from_mapping(NeighboursParams, payload["params"], where="table")
    view = planned_view(storage, payload["snapshot"], payload["transaction"])
    rows = query_ids(view, payload["queries"], payload["space"], payload["first"], payload["count"])
    if not len(rows):
        return TaskRecord(task.id, (), {}, {"rows": 0, "short": 0})
    parts = database_side(view, payload["space"], params)
    ids, distances = nearest(
        view, payload["queries"], payload["space"], payload["nprobe"], params, parts, rows, hardware
    )
    span = payload["first"], payload["count"]
    record = publish_rows(storage, payload["table"], task.id, span, rows, ids, distances)
    short = int((ids[:, params.k - 1] < 0).sum())
    return TaskRecord(task.id, (record,), {}, {"rows": len(rows), "short": short})


def _chosen_point(
    view: View,
    codebook: Codebook,
    space: str,
    params: NeighboursParams,
    unchanged: TableEntry | None,
    sample: _Sample,
) -> OperatingPoint:
    """The lists to read: the point that was stored for the whole database, else what the sample needs.

    Args:
        unchanged: the table's entry, if it follows from the same things: its measured point still holds.
    """
    if params.exact or codebook.num_lists == 1:
        return EXACT
    is_whole = params.where is None and params.sample >= 1
    if is_whole and (stored := stored_point(view, space, params.recall)):
        return stored
    if unchanged:
        return OperatingPoint(unchanged.nprobe, unchanged.recall_expected)
    true_ids, _ = sample.truth
    return measure(codebook, sample.parts, sample.vectors, sample.exclusion, params.k, params.recall, true_ids)


class _Sample:
    """Seeded rows of some of the spans, and their exact neighbours: what recall is foreseen and measured by."""

    def __init__(
        self, view: View, queries: str, space: str, params: NeighboursParams, spans: list[tuple[int, int]], threads: int
    ) -> None:
        self._view, self._queries, self._space, self._params = view, queries, space, params
        self._spans, self._threads = spans, threads

    @cached_property
    def rows(self) -> Int64Array:
        """(S,) ids, ascending."""
        rng = np.random.default_rng(0)
        chosen = sorted(rng.permutation(len(self._spans))[:_SAMPLE_SPANS].tolist())
        spans = [self._spans[place] for place in chosen]
        rows = np.concatenate([query_ids(self._view, self._queries, self._space, *span) for span in spans])
        return np.sort(rng.permutation(rows)[:SAMPLE_ROWS])

    @cached_property
    def parts(self) -> list[LivePart]:
        """The database side."""
        return database_side(self._view, self._space, self._params)

    @cached_property
    def vectors(self) -> AnyArray:
        """(S, D) of the rows."""
        return self._view.vectors(self._space, self.rows, self._queries)

    @cached_property
    def exclusion(self) -> Exclusion:
        """What the rows must not meet."""
        return exclusion_of(self._view, self._queries, self._params, self.rows)

    @cached_property
    def truth(self) -> TopK:
        """The rows' exact neighbours."""
        metric = self._view.snapshot.existing(SpaceEntry, self._space).metric
        return exact_of(self.vectors, self.parts, metric, self.exclusion, self._params.k, self._threads)

    def recall_of(self, storage: Storage, files: list[FileRecord]) -> float:
        """The recall that files of a table reach on the rows."""
        k = self._params.k
        if not (self.truth[0] >= 0).any():
            return 1.0
        ids, distances = np.empty((len(self.rows), k), np.int64), np.empty((len(self.rows), k), np.float32)
        for hit in Coverage(files).lookup(self.rows):
            table = read_table(storage.local(hit.record.path)).take(hit.positions)
            found = [table.column(name).combine_chunks().flatten().to_numpy() for name in ("neighbours", "distances")]
            ids[hit.where], distances[hit.where] = (array.reshape(table.num_rows, -1)[:, :k] for array in found)
        return round(recall_at_k(ids, distances, *self.truth).mean, 4)


def _check(params: NeighboursParams, table: str) -> None:
    if params.k < 1 or params.spare_neighbours < 0:
        raise UsageError(
            f"k of {params.k} with spare_neighbours {params.spare_neighbours}",
            remedy="k is at least 1, spare_neighbours at least 0.",
        )
    if not 0 < params.sample <= 1:
        raise UsageError(f"a sample of {params.sample}", remedy="Give a share above 0, at most 1.")
    if unknown := set(params.exclude) - set(EXCLUSIONS):
        raise UsageError(f"unknown exclusion '{min(unknown)}'", remedy=f"Known are: {', '.join(EXCLUSIONS)}.")
    if not table or "/" in table or table.startswith("."):
        raise UsageError(f"'{table}' cannot name a table", remedy="Give a short --table without '/'.")


def refuse_missing(view: View, queries: str, space: str) -> None:
    """Raises MissingStep when something that should be in the search is not yet embedded or indexed."""
    if not view.query_vectors(queries, space).records:
        raise MissingStep(
            f"query set '{queries}' has no vectors in space '{space}'", remedy="Run 'retrodb embed' first."
        )
    if missing_rows(view, space, parts_of(view, space)):
        raise MissingStep(f"space '{space}' has vectors that are not indexed", remedy="Run 'retrodb index' first.")


def state_of(view: View) -> str:
    """A digest of the live files that neighbours may follow from: equal ones give equal tables."""
    tables, screening = ("neighbours/", "joined/", "edits/"), ("reports/", "rejects/", "inputs/", "testsets/")
    beside = (*tables, *screening, "bands/", "duplicates/")
    return identity(sorted(path for path in view.manifest.paths() if not path.startswith(beside)))


def _task(view: View, table: str, details: dict[str, Any], first: int, count: int) -> Task[Any, Any]:
    names = set(NeighboursParams.__dataclass_fields__)
    payload = {
        "snapshot": view.snapshot.number,
        "transaction": view.snapshot.transaction,
        "table": table,
        "queries": details["queries"],
        "space": details["space"],
        "nprobe": details["nprobe"],
        "params": {key: value for key, value in details.items() if key in names},
        "first": first,
        "count": count,
    }
    return make_task("neighbours", STAGE_VERSION, payload, [], count)


def database_side(view: View, space: str, params: NeighboursParams) -> list[LivePart]:
    """The chunks that a table with these parameters may name, with the exclusion keys that it needs."""
    documents = chosen_documents(view, params.where, params.sample, params.seed)
    return live_parts(view, space, kinds=params.exclude, documents=documents)


def nearest(
    view: View,
    queries: str,
    space: str,
    nprobe: int,
    params: NeighboursParams,
    parts: list[LivePart],
    rows: Int64Array,
    hardware: JoinHardware,
) -> tuple[Int64Array, Float32Array]:
    """Neighbours and distances, (Q, k + spare_neighbours) each, of query rows among the rows of parts."""
    exclusion = exclusion_of(view, queries, params, rows)
    return join_rows(
        view, space, queries, rows, parts, open_codebook(view, space), nprobe, exclusion,
        params.k + params.spare_neighbours, hardware,
    )  # fmt: skip


def exclusion_of(view: View, queries: str, params: NeighboursParams, rows: Int64Array) -> Exclusion:
    """What each query row must not meet. A foreign query set has the documents that its sequences name, and no clusters."""
    own: dict[str, ExclusionKeys | Ragged] = {}
    for kind in params.exclude:
        if kind == "content":
            own[kind] = view.query_set(queries).content_keys(rows)
        elif queries == SELF:
            own[kind] = database_keys(view, kind, rows)
        else:
            own[kind] = np.full(len(rows), NO_KEY) if kind == "cluster" else sequence_documents(view, queries, rows)
    return Exclusion.of(len(rows), **own)
