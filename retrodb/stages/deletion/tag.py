"""Stage tag: every live document gets the score of a tagger, kept beside the shards. It decides nothing: stage filter does.

What is tagged already stays. Scores of two taggers must not stand in one column: where the word list, expression, function or
weights behind a name are not those of before, the command is refused, or with `retag` all documents are scored anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from retrodb.config import TagParams, to_mapping
from retrodb.engine.run import add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import MismatchError, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import AttributeEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.format.rows import RowSet, deserialize_rows, serialize_rows
from retrodb.format.schemas import ATTRIBUTES
from retrodb.screen.tagger import Tagger, load_tagger
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
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
    documents: int  # that were scored now
    tagged_before: int  # live documents that had their score
    positive: int  # documents scored now above 0
    mean_score: float  # of these documents; 0 for none
    max_score: float
    dry_run: bool = False


def run_tag(
    context: Context, name: str, params: TagParams, *, device: str = "auto", retag: bool = False, dry_run: bool = False
) -> TagResult:
    """Score the live documents that have no score yet.

    Args:
        device: where a classifier is computed.
        retag: whether another tagger may take the place of the one that had this name.

    Raises:
        UsageError: for a name that no column can have, or parameters that cannot be meant.
        MismatchError: when the tagger of this name was another one, both shown.
        ConflictError: when the same name was tagged meanwhile.
    """
    check_name(name)
    view, tagger = context.view(), load_tagger(params, device=device)
    definition, entry = tagger.definition().to_json(), view.snapshot.entry(AttributeEntry, name)
    is_new = entry is None or entry.definition != definition
    if entry is not None and is_new and not retag:
        raise MismatchError(
            f"attribute '{name}' was made by another tagger ({_shown(entry.definition)}); this one is {_shown(definition)}",
            remedy="Choose another --name, or score all documents anew with --retag.",
        )
    jobs = _jobs(view, name, anew=is_new)
    wanted, live = (
        (sum(len(rows) for rows in column) for column in zip(*jobs.values(), strict=True)) if jobs else (0, 0)
    )
    result = TagResult(view.snapshot.number, name, str(definition["kind"]), wanted, live - wanted, 0, 0.0, 0.0, dry_run)
    if dry_run or not (wanted or is_new):
        return result
    tasks = [_task(view, name, definition, record, rows) for record, (rows, _) in jobs.items() if len(rows)]
    replaced = [file.path for file in view.manifest.files("attributes", name)] if is_new else []
    plan = {"name": name, "definition": definition, "tasks": [task.id for task in tasks], "replaced": replaced}
    run = open_run(context.storage, "tag", plan, context.clock)
    engine = context.engine.with_processes(1) if device_is_shared(tagger) else context.engine
    records = engine.run(run, tasks, partial(run_tag_task, tagger=tagger), context.progress, rate_of="documents")
    change = Change(
        transaction=run.id,
        command="tag",
        arguments={"name": name, **_given(params)},
        clock=run.clock,
        conflict_keys=conflict_keys.tag(name),
        files=[file for record in records for file in record.files],
        drops=[DropRecord(OP_DROP_FILE, path) for path in replaced],
        entries={f"attribute/{name}": AttributeEntry(definition, params)} if is_new else {},
        counts=add_counts(records),
    )
    snapshot = commit(context.storage, view.snapshot, change)
    return _with_scores(replace(result, snapshot=snapshot.number), records)


def check_name(name: str) -> None:
    """Raises UsageError for a tagger's name that a condition could not use as it is."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a tagger",
            remedy="A condition has to name it: use small letters, digits and underscores.",
        )
    if name in RESERVED_COLUMNS:
        raise UsageError(f"'{name}' is a column of documents already", remedy="Choose another name.")


def device_is_shared(tagger: Tagger) -> bool:
    """Whether a tagger computes on a device that processes would have to share."""
    return getattr(tagger, "device", "cpu") != "cpu"


def _given(params: TagParams) -> dict[str, Any]:
    return {key: value for key, value in to_mapping(params).items() if value is not None}


def _shown(definition: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {str(value)[:16]}" for key, value in definition.items())


def _jobs(view: View, name: str, *, anew: bool) -> dict[FileRecord, tuple[Int64Array, Int64Array]]:
    """For every range the first rows of the live documents without a score, and of all live documents."""
    jobs = {}
    for record in view.chunks.ranges:
        rows = view.chunks.layout(record).first_row[live_documents(view.chunks, record)]
        scored = view.coverage("attributes", name).covered_mask(record.first_chunk, record.num_chunks)
        jobs[record] = (rows if anew else rows[~scored[rows]], rows)
    return jobs


def _task(
    view: View, name: str, definition: Mapping[str, Any], documents: FileRecord, rows: Int64Array
) -> Task[Any, Any]:
    chunks = view.chunks.file("chunks", documents.first_chunk, documents.num_chunks)
    view.files.open(chunks)
    payload = {
        "name": name,
        "definition": identity(definition),
        "documents": documents.path,
        "chunks": chunks.path,
        "present": chunks.rows.hex() if chunks.rows is not None else None,
        "first_chunk": documents.first_chunk,
        "num_chunks": documents.num_chunks,
        "rows": serialize_rows(rows).hex(),
    }
    return make_task("tag", STAGE_VERSION, payload, [chunks.digest.sha256.hex()], len(rows))


def run_tag_task(storage: Storage, task: Task[Any, Any], clock: str, *, tagger: Tagger) -> TaskRecord[Any]:
    """Score some documents of one range."""
    import pyarrow as pa

    del clock  # no score knows the time
    payload = task.payload
    layout = DocumentLayout.from_table(read_table(storage.local(payload["documents"]), LAYOUT_COLUMNS))
    present = RowSet(payload["num_chunks"], bytes.fromhex(payload["present"]) if payload["present"] else None).present
    wanted = deserialize_rows(bytes.fromhex(payload["rows"]))
    is_wanted = np.isin(layout.first_row, wanted)
    scores = [np.empty(0)]
    for block in document_blocks(storage.local(payload["chunks"]), layout, present):
        texts = block.documents()
        mask = is_wanted[block.first_document : block.first_document + len(texts)]
        if mask.any():
            scores.append(tagger.score(texts.filter(pa.array(mask))))
    values = np.concatenate(scores)
    mask = np.zeros(payload["num_chunks"], dtype=bool)
    mask[wanted] = True
    file = publish(
        storage,
        "attributes",
        path_of("attributes", name=payload["name"], task=task.id),
        partial(write_table, table=pa.table([values], schema=ATTRIBUTES)),
        name=payload["name"],
        first_chunk=payload["first_chunk"],
        rows=RowSet.from_mask(mask),
    )
    result = {"sum": float(values.sum()), "max": float(values.max(initial=-np.inf))}
    counts = {"documents": len(values), "positive": int((values > 0).sum())}
    return TaskRecord(task.id, (file,), result, counts)


def _with_scores(result: TagResult, records: list[TaskRecord[Any]]) -> TagResult:
    if not records:
        return result
    return replace(
        result,
        positive=add_counts(records)["positive"],
        mean_score=sum(record.result["sum"] for record in records) / result.documents,
        max_score=max(record.result["max"] for record in records),
    )
