"""Stage neighbours: for every row of a query set its nearest live chunks of a space.

Exclusions act inside the search, so a row is short of neighbours only when the database is. Rows keep `slack` neighbours
beyond k: a later deletion then costs no new search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import NO_KEY, Exclusion, Keys
from retrodb.ann.join import join_block
from retrodb.ann.rerank import LivePart
from retrodb.config import NeighboursParams, from_mapping, to_mapping
from retrodb.engine.run import add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import MissingStep, UsageError
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import neighbours_schema
from retrodb.format.settings import parse_settings
from retrodb.stages.context import Context
from retrodb.stages.live_parts import EXCLUSIONS, database_keys, live_parts, open_codebook, parts_of
from retrodb.stages.operating_point import EXACT, SAMPLE_ROWS, OperatingPoint, measure
from retrodb.store import marks
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import Storage, open_storage
from retrodb.view.view import SELF, View

STAGE_VERSION = 1
_BLOCK_ROWS = 1 << 17  # query rows of a task
_SAMPLE_SPANS = 16  # of such blocks, that the sample for the operating point is drawn from


@dataclass(frozen=True)
class NeighboursResult:
    """What a neighbours run did."""

    snapshot: int
    table: str
    query_set: str
    space: str
    rows: int  # of the table
    k: int
    slack: int
    short: int  # rows with fewer than k neighbours: the database has no more for them
    lists_probed: int  # per row, out of all lists; 0 for an exact product
    recall: float  # of the k neighbours, estimated on a sample of the rows
    dry_run: bool = False


def run_neighbours(
    context: Context,
    params: NeighboursParams,
    *,
    queries: str = SELF,
    space: str | None = None,
    table: str | None = None,
    dry_run: bool = False,
) -> NeighboursResult:
    """Compute a neighbour table whole.

    Raises:
        MissingStep: when the space or the query set is not embedded, or the space not indexed.
        UsageError: for parameters or a query set that cannot be meant.
    """
    view = context.view()
    name = space or view.snapshot.default_space
    table = table or (queries if space is None else f"{queries}-{space}")
    _check(params, table)
    chunks = view.query_set(queries)
    codebook = open_codebook(view, name)
    _refuse_missing(view, queries, name)
    spans = [span for record in chunks.ranges for span in _blocks(record.first_chunk, record.num_chunks)]
    point = EXACT if params.exact else _measured(view, codebook, queries, name, params, spans)
    details = {"queries": queries, "space": name, "nprobe": point.nprobe, "state": _state(view), **to_mapping(params)}
    result = NeighboursResult(
        view.snapshot.number, table, queries, name, 0, params.k, params.slack, 0, point.nprobe, point.recall, dry_run
    )
    if dry_run:
        rows = sum(len(_query_ids(view, queries, name, *span)) for span in spans)
        return replace(result, rows=rows)
    previous = view.snapshot.entry("table", table) or {}
    if previous | details == previous:  # nothing that the table follows from has changed
        return replace(result, rows=previous["rows"], short=previous["short"])
    plan = {"version": STAGE_VERSION, "table": table, "previous": previous, **details}
    run = open_run(context.storage, "neighbours", plan, context.clock)
    tasks = [_task(view, table, details, *span) for span in spans]
    function = partial(run_neighbours_task, threads=context.threads_for(len(tasks)))
    records = context.engine.run(run, tasks, function, context.progress)
    counts = {"rows": 0, "short": 0, **add_counts(records)}
    change = Change(
        transaction=run.id,
        command="neighbours",
        arguments=details,
        clock=run.clock,
        marks=marks.neighbours(table),
        files=[file for record in records for file in record.files],
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in view.manifest.files("neighbours", table)],
        entries={f"table/{table}": {**details, **counts, "snapshot": view.snapshot.number}},
        counts=counts,
    )
    snapshot = commit(context.storage, view.snapshot, change)
    return replace(result, snapshot=snapshot.number, rows=counts["rows"], short=counts["short"])


def run_neighbours_task(storage: Storage, task: Task, clock: str, *, threads: int = 1) -> TaskRecord:
    """The neighbours of one range of query rows; the threads change no byte of them."""
    import pyarrow as pa

    del clock
    payload = task.payload
    params = from_mapping(NeighboursParams, payload["params"], where="table")
    view = _view(storage.url, payload["snapshot"], payload["transaction"])
    rows = _query_ids(view, payload["queries"], payload["space"], payload["first"], payload["count"])
    if not len(rows):
        return TaskRecord(task.id, (), {}, {"rows": 0, "short": 0})
    ids, distances = _nearest(view, payload, params, rows, threads)
    width = params.k + params.slack
    arrays = [
        pa.array(rows),
        pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), width),
        pa.FixedSizeListArray.from_arrays(pa.array(distances.ravel()), width),
    ]
    schema = neighbours_schema(width)
    content = pa.Table.from_arrays([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)
    mask = np.zeros(payload["count"], dtype=bool)
    mask[rows - payload["first"]] = True
    path = path_of("neighbours", name=payload["table"], task=task.id)
    write = partial(write_table, table=content)
    record = publish(
        storage,
        "neighbours",
        path,
        write,
        name=payload["table"],
        first_chunk=payload["first"],
        rows=RowSet.from_mask(mask),
    )
    short = int((ids[:, params.k - 1] < 0).sum())
    return TaskRecord(task.id, (record,), {}, {"rows": len(rows), "short": short})


def _measured(
    view: View, codebook: Codebook, queries: str, space: str, params: NeighboursParams, spans: list[tuple[int, int]]
) -> OperatingPoint:
    """The operating point for the recall asked for, on a seeded sample of the rows of some spans."""
    if codebook.num_lists == 1:
        return EXACT
    rng = np.random.default_rng(0)
    chosen = sorted(rng.permutation(len(spans))[:_SAMPLE_SPANS].tolist())
    rows = np.concatenate([_query_ids(view, queries, space, *spans[place]) for place in chosen])
    sample = np.sort(rng.permutation(rows)[:SAMPLE_ROWS])
    parts = live_parts(view, space, kinds=params.exclude)
    vectors = view.vectors(space, sample, queries)
    return measure(codebook, parts, vectors, _exclusion(view, queries, params, sample), params.k, params.recall)


def _check(params: NeighboursParams, table: str) -> None:
    if params.k < 1 or params.slack < 0:
        raise UsageError(f"k of {params.k} with slack {params.slack}", remedy="k is at least 1, slack at least 0.")
    if unknown := set(params.exclude) - set(EXCLUSIONS):
        raise UsageError(f"unknown exclusion '{min(unknown)}'", remedy=f"Known are: {', '.join(EXCLUSIONS)}.")
    if not table or "/" in table or table.startswith("."):
        raise UsageError(f"'{table}' cannot name a table", remedy="Give a short --table without '/'.")


def _refuse_missing(view: View, queries: str, space: str) -> None:
    """Raises MissingStep when something that should be in the search is not yet embedded or indexed."""
    if not view.query_vectors(queries, space).records:
        raise MissingStep(
            f"query set '{queries}' has no vectors in space '{space}'", remedy="Run 'retrodb embed' first."
        )
    indexed = {(p.span.first_chunk, p.span.rows) for p in parts_of(view, space)}
    if any((r.first_chunk, r.rows) not in indexed for r in view.manifest.files("vectors", space)):
        raise MissingStep(f"space '{space}' has vectors that are not indexed", remedy="Run 'retrodb index' first.")


def _state(view: View) -> str:
    """A digest of the live files that neighbours may follow from: equal ones give equal tables."""
    beside = ("neighbours/", "reports/", "rejects/", "inputs/", "testsets/", "bands/", "duplicates/")
    return identity(sorted(path for path in view.manifest.paths() if not path.startswith(beside)))


def _blocks(first: int, count: int) -> list[tuple[int, int]]:
    return [(start, min(_BLOCK_ROWS, first + count - start)) for start in range(first, first + count, _BLOCK_ROWS)]


def _query_ids(view: View, queries: str, space: str, first: int, count: int) -> Int64Array:
    """The live rows of a range of a query set that have a vector."""
    chunks = view.query_set(queries)
    mask = chunks.key_mask(first, count) & view.query_vectors(queries, space).covered_mask(first, count)
    return first + np.flatnonzero(mask)


def _task(view: View, table: str, details: dict[str, Any], first: int, count: int) -> Task:
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


@lru_cache(maxsize=1)
def _view(url: str, number: int, transaction: str) -> View:
    """The planned snapshot, opened once a process; its transaction tells databases apart that followed each other at a URL."""
    del transaction
    storage = open_storage(url)
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    return View(storage, settings, read_snapshot(storage, number))


def _nearest(
    view: View, payload: Any, params: NeighboursParams, rows: Int64Array, threads: int
) -> tuple[Int64Array, Float32Array]:
    """Neighbours and distances, (Q, k + slack) each, of query rows."""
    space, queries, nprobe = payload["space"], payload["queries"], payload["nprobe"]
    parts = live_parts(view, space, kinds=params.exclude)
    vectors = view.vectors(space, rows, queries)
    exclusion = _exclusion(view, queries, params, rows)
    width = params.k + params.slack
    if nprobe == 0:
        metric = view.snapshot.entry("space", space)["metric"]
        blocks = (block for part in parts for block in part.blocks())
        return exact_topk(vectors, blocks, width, metric, exclusion, threads)
    lists = _stored_lists(parts, rows, nprobe) if queries == SELF else None
    return join_block(vectors, lists, parts, open_codebook(view, space), width, nprobe, exclusion, threads=threads)


def _stored_lists(parts: list[LivePart], rows: Int64Array, nprobe: int) -> Int32Array | None:
    """Each row's nearest lists as they were kept when it was added; None when too few were kept."""
    if min((part.part.lists_NA.shape[1] for part in parts), default=0) < nprobe:
        return None
    lists = np.full((len(rows), nprobe), -1, dtype=np.int32)
    for part in parts:
        place = np.minimum(np.searchsorted(part.ids_N, rows), max(len(part.ids_N) - 1, 0))
        here = np.flatnonzero(part.ids_N[place] == rows) if len(part.ids_N) else place[:0]
        lists[here] = part.part.lists_NA[place[here], :nprobe]
    return lists


def _exclusion(view: View, queries: str, params: NeighboursParams, rows: Int64Array) -> Exclusion:
    """What each query row must not meet. A foreign query set has no documents or clusters of its own in the database."""
    own: dict[str, Keys] = {}
    for kind in params.exclude:
        if kind == "content":
            own[kind] = view.query_set(queries).content_keys(rows)
        else:
            own[kind] = database_keys(view, kind, rows) if queries == SELF else np.full(len(rows), NO_KEY)
    return Exclusion.of(len(rows), **own)
