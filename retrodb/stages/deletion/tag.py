"""Stage tag: every live document gets a score from a tagger, stored next to the shards. Deciding is the task of stage filter.

Existing scores stay. One attribute never has the scores of two taggers: if the word list, expression, function or weights
behind a name have changed, the command is refused, or with `retag` it scores all documents again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from retrodb.config import TagParams
from retrodb.engine.run import add_counts
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.errors import MismatchError, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import AttributeEntry
from retrodb.format.json_codec import JsonObject, JsonValue, to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import ATTRIBUTES
from retrodb.screen.tagger import Tagger, load_tagger
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.document_blocks import document_blocks
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.view import View
from retrodb.view.where import RESERVED_COLUMNS, live_documents

STAGE_VERSION = 1
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
    """Score some documents of one range."""

    name: str  # of the attribute
    definition: str  # digest of what the tagger says it is
    documents: str  # path of the documents file
    chunks: str  # path of the chunks file
    present: RowSet  # rows of the range that the chunks file has
    first_chunk: int  # of the range
    to_score: RowSet  # first rows of the documents to score


@dataclass(frozen=True)
class TagScores:
    """Scores of one task, summed up."""

    total: float
    largest: float  # -infinity for no documents


TAG = TaskKind[TagPayload, TagScores]("tag", STAGE_VERSION, TagScores)


@dataclass(frozen=True)
class TagPlan:
    """Which documents a tagger is going to score."""

    view: View
    name: str
    params: TagParams
    tagger: Tagger
    is_new: bool  # the attribute has no scores, or those of another tagger
    tasks: tuple[Task[TagPayload, TagScores], ...]
    result: TagResult  # of a dry run


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
    return plan.result if dry_run else execute_tag(context, plan)


def plan_tag(view: View, name: str, params: TagParams, *, device: str = "auto", retag: bool = False) -> TagPlan:
    """Load the tagger and find the documents to score. Raises as `run_tag`, except ConflictError."""
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
    tasks, num_live, num_scored = [], 0, 0
    for record, live in _live_documents(view):
        is_scored = view.coverage("attributes", name).covered_mask(*record.span)
        rows = live if is_new else live[~is_scored[live]]
        num_live, num_scored = num_live + len(live), num_scored + len(rows)
        if len(rows):
            tasks.append(_task(view, name, definition, record, rows))
    result = TagResult(
        snapshot=view.snapshot.number,
        name=name,
        kind=str(definition["kind"]),
        num_documents=num_scored,
        num_tagged_before=num_live - num_scored,
        num_positive=0,
        mean_score=0.0,
        max_score=0.0,
        dry_run=True,
    )
    return TagPlan(view, name, params, tagger, is_new, tuple(tasks), result)


def execute_tag(context: Context, plan: TagPlan) -> TagResult:
    """Score the documents of a plan and commit the scores, unless nothing is new.

    Raises:
        ConflictError: the same name was tagged meanwhile.
    """
    result, name = replace(plan.result, dry_run=False), plan.name
    if not plan.tasks and not plan.is_new:
        return result
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
            "tasks": [task.id for task in plan.tasks],
            "replaced": [record.path for record in replaced],
        },
        arguments={"name": name, **_given(plan.params)},
    )
    engine = context.engine.with_processes(1) if device_is_shared(plan.tagger) else context.engine
    function = partial(run_tag_task, tagger=plan.tagger)
    records = transaction.run_tasks(plan.tasks, function, engine=engine, rate_of="documents")
    transaction.add_files(records)
    transaction.drop_files(replaced)
    if plan.is_new:
        transaction.set_entry(name, AttributeEntry(definition, plan.params))
    transaction.counts = add_counts(records)
    return _with_scores(replace(result, snapshot=transaction.commit().number), records)


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


def _live_documents(view: View) -> list[tuple[FileRecord, Int64Array]]:
    """Every range of ids with the first rows of its live documents."""
    return [
        (record, view.chunks.layout(record).first_row[live_documents(view.chunks, record)])
        for record in view.chunks.ranges
    ]


def _task(
    view: View, name: str, definition: JsonObject, documents: FileRecord, rows: Int64Array
) -> Task[TagPayload, TagScores]:
    chunks = view.chunks.file("chunks", *documents.span)
    view.files.open(chunks)
    mask = np.zeros(documents.num_chunks, dtype=bool)
    mask[rows] = True
    payload = TagPayload(
        name=name,
        definition=identity(definition),
        documents=documents.path,
        chunks=chunks.path,
        present=chunks.row_set,
        first_chunk=documents.first_chunk,
        to_score=RowSet.from_mask(mask),
    )
    return TAG.task(payload, [chunks.digest.sha256.hex()], len(rows))


def run_tag_task(
    storage: Storage, task: Task[TagPayload, TagScores], clock: str, *, tagger: Tagger
) -> TaskRecord[TagScores]:
    """Score some documents of one range."""
    import pyarrow as pa

    del clock  # scores do not depend on the time
    payload = task.payload
    layout = DocumentLayout.from_table(read_table(storage.local(payload.documents), LAYOUT_COLUMNS))
    to_score = payload.to_score.mask[layout.first_row]
    scores = [np.empty(0)]
    for block in document_blocks(storage.local(payload.chunks), layout, payload.present.present):
        texts = block.documents()
        mask = to_score[block.first_document : block.first_document + len(texts)]
        if mask.any():
            scores.append(tagger.score(texts.filter(pa.array(mask))))
    values = np.concatenate(scores)
    file = publish(
        storage,
        "attributes",
        path_of("attributes", name=payload.name, task=task.id),
        partial(write_table, table=pa.table([values], schema=ATTRIBUTES)),
        name=payload.name,
        first_chunk=payload.first_chunk,
        rows=payload.to_score,
    )
    counts = {"documents": len(values), "positive": int((values > 0).sum())}
    return TaskRecord(task.id, (file,), TagScores(float(values.sum()), float(values.max(initial=-np.inf))), counts)


def _with_scores(result: TagResult, records: list[TaskRecord[TagScores]]) -> TagResult:
    if not records:
        return result
    return replace(
        result,
        num_positive=add_counts(records)["positive"],
        mean_score=sum(record.result.total for record in records) / result.num_documents,
        max_score=max(record.result.largest for record in records),
    )
