"""The first pass of an ingest as tasks: which splits, in which processes, and what becomes of files that crash their reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from retrodb.config import IngestParams
from retrodb.corpus.document import Fields, Limits
from retrodb.corpus.input_files import plan_splits
from retrodb.corpus.split import InputFile, Split
from retrodb.engine.run import Engine, Run
from retrodb.engine.task import Task, TaskFunction, TaskRecord, make_task
from retrodb.errors import WorkerDied
from retrodb.stages.context import Context
from retrodb.stages.ingest.inputs import Inputs
from retrodb.stages.ingest.read_inputs import run_probe, run_scan

STAGE_VERSION = 1
NATIVE_FORMATS = ("parquet", "hf-arrow", "html", "warc", "arc")
"""Formats read by native code that a broken file may crash; the others are plain Python, or orjson line by line."""

# Stored bytes, by stage, that one process is through with before others have started: reading is quick, cutting is not.
_SMALL_BYTES = {"scan": 64 << 20, "cut": 4 << 20}
_MIN_SEGMENT, _MAX_SEGMENT = 8 << 20, 160 << 20  # characters; the upper one gives shards of nearly 2^20 chunks


def scan(context: Context, run: Run, found: Inputs, params: IngestParams) -> list[TaskRecord[Any]]:
    """Read every split once; with a limit, one after the other until it is reached."""
    total = sum(f.size_bytes for f in found.files)
    segment = min(max(total // 8, _MIN_SEGMENT), _MAX_SEGMENT)
    shared, digests = _scan_payload(run, params, segment), list(found.digests)

    def task_of(split: Split, limit: int | None) -> Task[Any, Any]:
        payload = {**shared, "split": split.to_json(), "limit": limit}
        return make_task("scan", STAGE_VERSION, payload, digests, split.size_bytes)

    splits = plan_splits(found.files, segment, params.marker)
    if params.limit is None:
        return _read(context, run, [task_of(split, None) for split in splits])
    records: list[TaskRecord[Any]] = []
    left = params.limit
    for split in splits:
        if left > 0:
            records += _read(context, run, [task_of(split, left)])
            left -= records[-1].counts["read"] + records[-1].counts["rejected"]
    return records


def _read(context: Context, run: Run, tasks: list[Task[Any, Any]]) -> list[TaskRecord[Any]]:
    """Run scan tasks. A process that dies is out of memory, or a reader crashed: then every task gets one of its own."""
    files = [file for task in tasks for file in Split.from_json(task.payload["split"]).files]
    is_native = any(file.format in NATIVE_FORMATS or (file.is_tar and file.format == "auto") for file in files)
    try:
        return run_tasks(context, run, tasks, run_scan, isolated=is_native)
    except WorkerDied:
        return [_read_alone(context, run, task) for task in tasks]


def _read_alone(context: Context, run: Run, task: Task[Any, Any]) -> TaskRecord[Any]:
    """Run one scan task in its own process; the files at which it dies, each read alone, become rejects."""
    try:
        return run_tasks(context, run, [task], run_scan, isolated=True)[0]
    except WorkerDied:
        split = Split.from_json(task.payload["split"])
        crashed = [f.path for f in split.files if len(split.files) == 1 or _dies(context, run, task, f)]
        if not crashed:
            raise
        marked = replace(task, payload={**task.payload, "crashed": crashed})
        return run_tasks(context, run, [marked], run_scan, isolated=True)[0]


def _dies(context: Context, run: Run, task: Task[Any, Any], file: InputFile) -> bool:
    payload = {**task.payload, "split": Split((file,)).to_json()}
    probe = make_task("probe", STAGE_VERSION, payload, [], file.size_bytes)
    try:
        run_tasks(context, run, [probe], run_probe, isolated=True)
    except WorkerDied:
        return True
    return False


def run_tasks(
    context: Context,
    run: Run,
    tasks: Sequence[Task[Any, Any]],
    function: TaskFunction[Any, Any],
    *,
    isolated: bool = False,
    rate_of: str = "read",
) -> list[TaskRecord[Any]]:
    """Run tasks on the context's engine; little work does not pay for the start of processes."""
    is_small = sum(task.weight for task in tasks) < max(
        (_SMALL_BYTES.get(task.kind.stage, 0) for task in tasks), default=0
    )
    engine = Engine() if is_small and not isolated else context.engine
    return engine.run(run, tasks, function, context.progress, isolated=isolated, unit="B", rate_of=rate_of)


def fields_of(params: IngestParams) -> Fields:
    """Which fields of a record an ingest takes."""
    return Fields(
        id=params.id_field,
        text=params.text_field,
        key=params.key_field,
        value=params.value_field,
        metadata=None if params.metadata_fields is None else tuple(params.metadata_fields),
        drop_metadata=params.drop_metadata,
        marker=params.marker,
        front_matter=params.front_matter,
    )


def limits_of(params: IngestParams) -> Limits:
    """What a record of an ingest may take."""
    return Limits(params.max_document_chars, params.oversize, params.max_record_bytes)


def _scan_payload(run: Run, params: IngestParams, segment_bytes: int) -> dict[str, Any]:
    return {
        "run": run.id,
        "source": params.source,
        "fields": asdict(fields_of(params)),
        "limits": asdict(limits_of(params)),
        "segment_bytes": segment_bytes,
    }
