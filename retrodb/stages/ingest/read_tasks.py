"""The first pass of an ingest as tasks: the splits, the processes that read them, and files that crash their reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retrodb.config import IngestParams
from retrodb.corpus.document import Fields, Limits
from retrodb.corpus.input_files import plan_splits
from retrodb.corpus.split import InputFile, Split
from retrodb.engine.run import Engine, Run
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.errors import WorkerDied
from retrodb.stages.context import Context
from retrodb.stages.ingest.inputs import Inputs, on_any_machine, on_disk
from retrodb.stages.ingest.read_inputs import PROBE, READ, ReadPayload, ReadResult, run_probe, run_read

NATIVE_FORMATS = ("parquet", "hf-arrow", "html", "warc", "arc")
"""Formats read by native code that a broken file may crash; the others are plain Python, or orjson line by line."""

# Bytes, by stage, that one process works through before others have started: looking keys up is fast, tokenizing is not.
_SMALL_BYTES = {"read": 64 << 20, "look-up": 1 << 30, "tokenize": 4 << 20}
_MIN_SEGMENT, _MAX_SEGMENT = 8 << 20, 160 << 20  # characters; the upper one gives shards of nearly 2^20 chunks

ReadTask = Task[ReadPayload, ReadResult]
ReadRecord = TaskRecord[ReadResult]


def segment_chars(input_bytes: int) -> int:
    """Characters of a segment of the spool, about, which becomes a shard: of inputs with so many bytes, as stored."""
    return min(max(input_bytes // 8, _MIN_SEGMENT), _MAX_SEGMENT)


def read_files(context: Context, run: Run, inputs: Inputs, params: IngestParams) -> list[ReadRecord]:
    """Read every split once; with a limit, one split after the other until the limit is reached."""
    total = sum(f.size_bytes for f in inputs.files)
    segment = segment_chars(total)

    def payload_of(split: Split, limit: int | None) -> ReadPayload:
        split = replace(split, files=tuple(map(on_any_machine, split.files)))
        return ReadPayload(run.id, params.source, fields_of(params), limits_of(params), segment, split, limit)

    splits = plan_splits([on_disk(context.storage, file) for file in inputs.files], segment, params.marker)
    if params.limit is None:
        return _read_complete_files(context, run, [payload_of(split, None) for split in splits], inputs.digests)
    records: list[ReadRecord] = []
    remaining = params.limit
    for split in splits:
        if remaining > 0:
            records += _read_complete_files(context, run, [payload_of(split, remaining)], inputs.digests)
            remaining -= records[-1].counts["read"] + records[-1].counts["rejected"]
    return records


def _read(context: Context, run: Run, tasks: list[ReadTask]) -> list[ReadRecord]:
    """Run read tasks. When a process dies of too little memory or of a crash, every task gets a process of its own."""
    files = [file for task in tasks for file in task.payload.split.files]
    is_native = any(file.format in NATIVE_FORMATS or (file.is_tar and file.format == "auto") for file in files)
    try:
        return _run(context, run, tasks, run_read, isolated=is_native)
    except WorkerDied:
        return [_read_alone(context, run, task) for task in tasks]


def _read_complete_files(
    context: Context, run: Run, payloads: Sequence[ReadPayload], digests: Sequence[str]
) -> list[ReadRecord]:
    """Read splits, and keep no record of a file that cannot be read to its end: the file becomes one reject.

    Only one of several splits of a file may be damaged. So all splits of the file are read again without it.
    """

    def task_of(payload: ReadPayload) -> ReadTask:
        return READ.task(payload, digests, payload.split.size_bytes)

    tasks = [task_of(payload) for payload in payloads]
    records = _read(context, run, tasks)
    faults: dict[str, str] = {}  # by path
    while new := {path: fault for record in records for path, fault in record.result.unreadable}:
        faults |= new
        again = [i for i, task in enumerate(tasks) if any(file.path in new for file in task.payload.split.files)]
        for i in again:
            payload = tasks[i].payload
            unreadable = tuple((f.path, faults[f.path]) for f in payload.split.files if f.path in faults)
            tasks[i] = task_of(replace(payload, unreadable=unreadable))
        for i, record in zip(again, _read(context, run, [tasks[i] for i in again]), strict=True):
            records[i] = record
    return records


def _read_alone(context: Context, run: Run, task: ReadTask) -> ReadRecord:
    """Run one read task in its own process; the files that crash it, each tried alone, become rejects."""
    try:
        return _run(context, run, [task], run_read, isolated=True)[0]
    except WorkerDied:
        files = task.payload.split.files
        crashed = tuple(f.path for f in files if len(files) == 1 or _crashes(context, run, task, f))
        if not crashed:
            raise
        marked = replace(task, payload=replace(task.payload, crashed=crashed))
        return _run(context, run, [marked], run_read, isolated=True)[0]


def _crashes(context: Context, run: Run, task: ReadTask, file: InputFile) -> bool:
    probe = PROBE.task(replace(task.payload, split=Split((file,))), weight=file.size_bytes)
    try:
        _run(context, run, [probe], run_probe, isolated=True)
    except WorkerDied:
        return True
    return False


def _run(
    context: Context, run: Run, tasks: Sequence[Task[P, R]], function: TaskFunction[P, R], *, isolated: bool
) -> list[TaskRecord[R]]:
    engine = context.engine if isolated else engine_for(context, tasks)
    return engine.run(run, tasks, function, context.progress, isolated=isolated, unit="B", rate_of="read")


def engine_for(context: Context, tasks: Sequence[Task[P, R]]) -> Engine:
    """The context's engine, or one with one process where starting these takes longer than the work."""
    small_bytes = max((_SMALL_BYTES.get(task.kind.stage, 0) for task in tasks), default=0)
    is_small = sum(task.weight for task in tasks) < small_bytes
    return context.engine.here() if is_small else context.engine


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
    """How large a record of an ingest may be."""
    return Limits(params.max_document_chars, params.oversize, params.max_record_bytes)
