"""Tasks and what is left of them.

A task is a small description; running it reads and writes storage and returns a record of its outputs. Its id hashes the
stage, the stage's version, its parameters and the digests of its inputs, so equal work has equal names on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from retrodb.format.records import FileDigest, FileRecord
from retrodb.store.digest import identity
from retrodb.store.storage import Storage


@dataclass(frozen=True)
class Task:
    """One unit of work of a stage."""

    id: str  # 32 hexadecimal digits
    stage: str  # such as "embed"
    payload: Mapping[str, Any]  # plain values: everything the work depends on, besides its input files
    weight: int = 1  # its share of the work, in the progress unit of the stage (bytes, chunks, rows)


def make_task(stage: str, version: int, payload: Mapping[str, Any], inputs: list[str], weight: int = 1) -> Task:
    """A task whose id hashes all that its output depends on; `inputs` are digests."""
    return Task(identity(stage, version, payload, inputs), stage, payload, weight)


@dataclass(frozen=True)
class TaskRecord:
    """What a finished task leaves: its completion record, stored beside the run's plan."""

    task: str  # id of the task
    files: tuple[FileRecord, ...] = ()  # published outputs
    result: Mapping[str, Any] = field(default_factory=dict)  # small plain values for the commit
    counts: Mapping[str, int] = field(default_factory=dict)  # added up over tasks for the report


class TaskFunction(Protocol):
    """Runs one task of a stage. A module-level function, so that another process can import it."""

    def __call__(self, storage: Storage, task: Task, clock: str) -> TaskRecord:
        """Run the task; `clock` is the run's time, the only time that may enter its outputs."""
        ...


def dump_record(record: TaskRecord) -> bytes:
    """The JSON bytes of a completion record."""
    files = [
        {
            **{n: getattr(f, n) for n in ("kind", "name", "path", "first_chunk", "num_chunks", "num_rows")},
            "rows": None if f.rows is None else f.rows.hex(),
            "size_bytes": f.digest.size_bytes,
            "sha256": f.digest.sha256.hex(),
            "xxh3": f.digest.xxh3.hex(),
        }
        for f in record.files
    ]
    value = {"task": record.task, "files": files, "result": record.result, "counts": record.counts}
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def parse_record(data: bytes) -> TaskRecord:
    """Read a completion record; raises ValueError when it is torn or foreign."""
    value = orjson.loads(data)
    files = []
    for f in value["files"]:
        digest = FileDigest(f.pop("size_bytes"), bytes.fromhex(f.pop("sha256")), bytes.fromhex(f.pop("xxh3")))
        rows = f.pop("rows")
        files.append(FileRecord(digest=digest, rows=None if rows is None else bytes.fromhex(rows), **f))
    return TaskRecord(value["task"], tuple(files), value["result"], value["counts"])
