"""Stage tag: every live document gets a score from a tagger, stored next to the shards. Deciding is the task of stage filter.

Planning reads the manifest. The task of each shard finds its live documents without a score.
Existing scores stay. One attribute never has the scores of two taggers: if the word list, expression, function or weights
behind a name have changed, the command is refused, or with `retag` it scores all documents again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from retrodb.config import TagParams
from retrodb.engine.run import add_counts, forget_run, passing_run
from retrodb.engine.task import NoResult, R, Task, TaskKind, TaskRecord
from retrodb.errors import MismatchError, UsageError
from retrodb.format.arrays import Float64Array, Int64Array
from retrodb.format.entries import AttributeEntry
from retrodb.format.json_codec import JsonValue, to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import ChunkRange
from retrodb.format.rows import RowSet
from retrodb.format.schemas import ATTRIBUTES
from retrodb.screen.tagger import Tagger, load_tagger
from retrodb.stages.context import Context
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.document_blocks import document_blocks
from retrodb.view.view import View
from retrodb.view.where import RESERVED_COLUMNS, live_documents

STAGE_VERSION = 2
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class TagResult:
    """What a tagger did."""

    snapshot: int
    name: str
    kind: str  # "wordlist", "regex", "hf-model" or "python"
    num_documents: int  # scored now
    num_tagged_before: int  # live documents that had a score already
    num_positive: int  # documents scored now above 0
    mean_score: float  # of the documents scored now; 0 for none
    max_score: float
    dry_run: bool = False


@dataclass(frozen=True)
class TagPayload:
    """Score the live documents of one shard that have no score yet."""

    snapshot: PlannedSnapshot
    shard: ChunkRange
    name: str  # of the attribute
    definition: str  # digest of what the tagger says it is
    is_new: bool  # score all live documents, because the attribute has no scores, or those of another tagger


@dataclass(frozen=True)
class TagScores:
    """Scores of one task, summed up."""

    total: float  # 0 for no documents
    largest: float  # 0 for no documents


TAG = TaskKind[TagPayload, TagScores]("tag", STAGE_VERSION, TagScores)
COUNT_UNTAGGED = TaskKind[TagPayload, NoResult]("tag-count", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class TagPlan:
    """Which shards a tagger is going to read."""

    view: View
    name: str
    params: TagParams
    tagger: Tagger
    device: str  # where a classifier runs
    is_new: bool  # the attribute has no scores, or those of another tagger
    payloads: tuple[TagPayload, ...]  # one per shard
    num_unscored: tuple[int, ...]  # at most so many documents of each shard have no score; deleted ones count too

    def tasks(self, kind: TaskKind[TagPayload, R]) -> list[Task[TagPayload, R]]:
        """One task per shard."""
        weights = (max(count, 1) for count in self.num_unscored)
        return [kind.task(payload, weight=weight) for payload, weight in zip(self.payloads, weights, strict=True)]


def run_tag(
    context: Context, name: str, params: TagParams, *, device: str = "auto", retag: bool = False, dry_run: bool = False
) -> TagResult:
    """Score the live documents that have no score yet.

    Args:
        device: where a classifier runs.
        retag: whether another tagger may replace the one that had this name.

    Raises:
        UsageError: for an invalid name or invalid parameters.
        MismatchError: the name belongs to another tagger.
        ConflictError: the same name was tagged meanwhile.
    """
    plan = plan_tag(context.view(), name, params, device=device, retag=retag)
    return count_untagged(context, plan) if dry_run else execute_tag(context, plan)


def plan_tag(view: View, name: str, params: TagParams, *, device: str = "auto", retag: bool = False) -> TagPlan:
    """Load the tagger and find its shards, by the manifest alone. Raises as `run_tag`, except ConflictError."""
    check_attribute_name(name)
    tagger = load_tagger(params, device=device)
    definition = tagger.definition().to_json()
    entry = view.snapshot.entry(AttributeEntry, name)
    is_new = entry is None or entry.definition != definition
    if entry is not None and is_new and not retag:
        former, current = _describe(entry.definition), _describe(definition)
        raise MismatchError(
            f"attribute '{name}' belongs to another tagger ({former}); this one is {current}",
            remedy="Choose another --name, or score all documents again with --retag.",
        )
    shards = [view.shards.record(index) for index in range(len(view.shards))]
    scored = view.coverage("attributes", name)
    num_scored = [0 if is_new else sum(r.num_rows for r in scored.overlapping(*shard.span)) for shard in shards]
    snapshot, digest = PlannedSnapshot.of(view), identity(definition)
    return TagPlan(
        view=view,
        name=name,
        params=params,
        tagger=tagger,
        device=device,
        is_new=is_new,
        payloads=tuple(TagPayload(snapshot, shard.span, name, digest, is_new) for shard in shards),
        num_unscored=tuple(
            max(shard.num_documents - count, 0) for shard, count in zip(shards, num_scored, strict=True)
        ),
    )


def count_untagged(context: Context, plan: TagPlan) -> TagResult:
    """The result of a dry run: the documents are counted in one task per shard."""
    tasks = plan.tasks(COUNT_UNTAGGED)
    engine = context.engine_for_chunks(sum(payload.shard.num_chunks for payload in plan.payloads))
    with passing_run(context.storage, "tag", {"count": [task.id for task in tasks]}, context.clock) as run:
        records = engine.run(run, tasks, run_count_untagged, context.progress)
    return replace(_result(plan, records), dry_run=True)


def execute_tag(context: Context, plan: TagPlan) -> TagResult:
    """Score the documents of a plan and commit the scores, unless nothing is new.

    Raises:
        ConflictError: the same name was tagged meanwhile.
    """
    name, tasks = plan.name, plan.tasks(TAG)
    definition = plan.tagger.definition().to_json()
    replaced = plan.view.manifest.files("attributes", name) if plan.is_new else []
    transaction = Transaction.open(
        context,
        plan.view,
        "tag",
        conflict_keys.tag(name),
        plan={
            "name": name,
            "definition": definition,
            "tasks": [task.id for task in tasks],
            "replaced": [record.path for record in replaced],
        },
        arguments={"name": name, **_given(plan.params)},
    )
    is_alone = device_is_shared(plan.tagger) or not any(plan.num_unscored)
    engine = context.engine.with_processes(1) if is_alone else context.engine
    function = partial(run_tag_task, params=plan.params, device=plan.device)
    extra_bytes: int = getattr(plan.tagger, "memory_bytes", 0)  # of a classifier
    records = transaction.run_tasks(tasks, function, engine=engine, extra_bytes=extra_bytes, rate_of="documents")
    result = _with_scores(_result(plan, records), records)
    if not result.num_documents and not plan.is_new:
        forget_run(transaction.run)
        return result
    transaction.add_files(records)
    transaction.drop_files(replaced)
    if plan.is_new:
        transaction.set_entry(name, AttributeEntry(definition, plan.params))
    transaction.counts = {"documents": result.num_documents, "positive": result.num_positive} if records else {}
    return replace(result, snapshot=transaction.commit().number)


def _result(plan: TagPlan, records: Sequence[TaskRecord[R]]) -> TagResult:
    """What the tasks counted, without the scores."""
    counts = add_counts(records)
    return TagResult(
        snapshot=plan.view.snapshot.number,
        name=plan.name,
        kind=str(plan.tagger.definition().to_json()["kind"]),
        num_documents=counts.get("documents", 0),
        num_tagged_before=counts.get("tagged_before", 0),
        num_positive=0,
        mean_score=0.0,
        max_score=0.0,
    )


def check_attribute_name(name: str) -> None:
    """Raises UsageError for a tagger's name that a condition could not use."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a tagger",
            remedy="Conditions use the name: take small letters, digits and underscores.",
        )
    if name in RESERVED_COLUMNS:
        raise UsageError(f"'{name}' is a column of documents already", remedy="Choose another name.")


def device_is_shared(tagger: Tagger) -> bool:
    """Whether a tagger runs on a device that several processes would have to share."""
    return getattr(tagger, "device", "cpu") != "cpu"


def _given(params: TagParams) -> dict[str, JsonValue]:
    return {key: value for key, value in to_plain_object(params).items() if value is not None}


def _describe(definition: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{key} {str(value)[:16]}" for key, value in definition.items())


def run_count_untagged(storage: Storage, task: Task[TagPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Count the documents of a shard that a tagger would score."""
    del clock
    rows, num_tagged_before = _rows_to_score(planned_view(storage, task.payload.snapshot), task.payload)
    return TaskRecord(task.id, counts={"documents": len(rows), "tagged_before": num_tagged_before})


def run_tag_task(
    storage: Storage, task: Task[TagPayload, TagScores], clock: str, *, params: TagParams, device: str
) -> TaskRecord[TagScores]:
    """Score the documents of a shard that have no score yet.

    Raises:
        MismatchError: the word list, function or model of this machine is not that of the command.
    """
    del clock  # scores do not depend on the time
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    rows, num_tagged_before = _rows_to_score(view, payload)
    if not len(rows):
        return TaskRecord(task.id, (), TagScores(0.0, 0.0), {"documents": 0, "tagged_before": num_tagged_before})
    values = _scores(view, payload.shard, rows, _tagger(params, device, payload.definition))
    mask = np.zeros(payload.shard.num_chunks, dtype=bool)
    mask[rows] = True
    file = publish(
        storage,
        "attributes",
        path_of("attributes", name=payload.name, task=task.id),
        partial(write_table, table=pa.table([values], schema=ATTRIBUTES)),
        name=payload.name,
        first_chunk=payload.shard.first_chunk,
        rows=RowSet.from_mask(mask),
    )
    counts = {"documents": len(rows), "positive": int((values > 0).sum()), "tagged_before": num_tagged_before}
    return TaskRecord(task.id, (file,), TagScores(float(values.sum()), float(values.max())), counts)


def _rows_to_score(view: View, payload: TagPayload) -> tuple[Int64Array, int]:
    """The first rows (M,) of a shard's documents to score, ascending; and how many live documents have a score already."""
    record = view.chunks.file("documents", *payload.shard)
    live = view.chunks.layout(record).first_row[live_documents(view.chunks, record)]
    if payload.is_new:
        return live, 0
    is_scored = view.coverage("attributes", payload.name).covered_mask(*payload.shard)[live]
    return live[~is_scored], int(is_scored.sum())


@lru_cache(maxsize=2)
def _tagger(params: TagParams, device: str, definition: str) -> Tagger:
    """The tagger of a command, loaded once per process."""
    tagger = load_tagger(params, device=device)
    if identity(tagger.definition().to_json()) != definition:
        what = "the word list, function or model of this machine is not that of the command"
        remedy = "Give all machines the same files, and the same versions."
        raise MismatchError(what, where=_describe(tagger.definition().to_json()), remedy=remedy)
    return tagger


def _scores(view: View, shard: ChunkRange, rows: Int64Array, tagger: Tagger) -> Float64Array:
    """(M,) float64: the scores of the documents that begin at some rows of a shard, ascending."""
    layout = view.chunks.layout(view.chunks.file("documents", *shard))
    chunks = view.chunks.file("chunks", *shard)
    to_score = np.isin(layout.first_row, rows)
    scores = [np.empty(0)]
    for block in document_blocks(view.files.open(chunks), layout, view.files.rows(chunks).present):
        texts = block.documents()
        mask = to_score[block.first_document : block.first_document + len(texts)]
        if mask.any():
            scores.append(tagger.score(texts.filter(pa.array(mask))))
    return np.concatenate(scores)


def _with_scores(result: TagResult, records: Sequence[TaskRecord[TagScores]]) -> TagResult:
    scored = [record for record in records if record.counts["documents"]]
    if not scored:
        return result
    return replace(
        result,
        num_positive=add_counts(scored)["positive"],
        mean_score=sum(record.result.total for record in scored) / result.num_documents,
        max_score=max(record.result.largest for record in scored),
    )
