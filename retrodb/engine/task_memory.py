"""The anonymous memory of one process that runs tasks of a kind: what the memory limit of a command is divided by.

A process needs `base_mib` for its interpreter, the modules and compiled kernels that the tasks import, and the blocks and
buffers that they hold whatever their size, and `unit_bytes` for each unit of a task's weight. `benchmarks/bench_memory.py`
measures both: it runs every kind of task in a process of its own on shards of two sizes, and samples the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrodb.engine.task import P, R, Task
from retrodb.format import MAX_SHARD_CHUNKS as SHARD
from retrodb.memory import MIB, with_caches


@dataclass(frozen=True)
class TaskMemory:
    """What one process needs for the tasks of a kind, next to what it keeps of shards in its cache."""

    base_mib: int
    unit_bytes: float = 0.0  # for each unit of a task's weight: a chunk, a document, an entry or a byte
    most_units: int | None = None  # that a task holds; a weight may be a range of ids, most of which no file has

    def of_task(self, weight: int, extra_bytes: int = 0) -> int:
        """Bytes of a process that runs a task of a weight, its cache included."""
        units = weight if self.most_units is None else min(weight, self.most_units)
        return with_caches(self.base_mib * MIB + round(self.unit_bytes * units) + extra_bytes)


MAIN_MIB = 90
"""The process of a command while others run its tasks: the library, Arrow, and the records of files."""


def process_bytes(tasks: Sequence[Task[P, R]], extra_bytes: int = 0) -> int:
    """Bytes of one process that runs some tasks, one after the other.

    Args:
        extra_bytes: what every task holds and no table knows, such as the weights of a model.
    """
    return max((memory_of(task.kind.stage).of_task(task.weight, extra_bytes) for task in tasks), default=0)


def memory_of(stage: str) -> TaskMemory:
    """What the tasks of a stage need."""
    return TASK_MEMORY.get(stage, _OTHER)


_OTHER = TaskMemory(160)
# fmt: off
TASK_MEMORY: Mapping[str, TaskMemory] = {
    # Weights in bytes.
    "read": TaskMemory(95), "probe": TaskMemory(95),
    "tokenize": TaskMemory(110, 0.6),
    "look-up": TaskMemory(75, 2.0),
    "export-pieces": TaskMemory(255, 0.35),
    "check-read": TaskMemory(130, 1.5), "check-compare": TaskMemory(130, 1.5),
    "check-rows": TaskMemory(95),
    "find-keys": TaskMemory(95, 0.5),
    "purge-search": TaskMemory(230, 3.0),
    "purge-sequences": TaskMemory(110, 1.0),
    # Weights in chunks; the text of a chunk is about 300 bytes.
    "leak-scan": TaskMemory(155, 220, SHARD), "leak-count": TaskMemory(155, 220, SHARD),
    "leak-clean": TaskMemory(155, 220, SHARD),
    "near-facts": TaskMemory(75, 45, SHARD),
    "near-equal": TaskMemory(80),
    "bands": TaskMemory(175, 290, SHARD),
    "near-distinct": TaskMemory(85, 60, SHARD),
    "near-join": TaskMemory(90),
    "near-shingles": TaskMemory(160, 220, SHARD),
    "verify": TaskMemory(280),  # blocks of 65,536 chunks and of 8 million shingles
    "near-clusters": TaskMemory(90),
    "near-tombstones": TaskMemory(80, 60, SHARD),
    "filter": TaskMemory(190, 230, SHARD), "undelete": TaskMemory(190, 230, SHARD),  # a condition on texts, by DuckDB
    "embed-pending": TaskMemory(90, 25, SHARD),
    "embed-sample": TaskMemory(110, 1200),
    "reuse-new": TaskMemory(70, 130), "reuse-filter": TaskMemory(70), "reuse-old": TaskMemory(70, 130),
    "reuse-join": TaskMemory(70),
    "embed": TaskMemory(205, 80),
    "index": TaskMemory(100, 130),
    "index-missing": TaskMemory(100, 25, SHARD),
    "index-sample": TaskMemory(110),  # stages/index/vector_sample.py has the rest
    "index-vectors": TaskMemory(110, 4096),  # vectors of 1,024 dimensions, twice
    "index-train": TaskMemory(190), "index-groups": TaskMemory(190), "index-split": TaskMemory(190),
    "index-cluster": TaskMemory(190), "index-codebook": TaskMemory(190),  # stages/index/train_codebook.py has the rest
    "index-lists": TaskMemory(230),  # 64 MB of offsets, and their differences
    "index-drift": TaskMemory(280), "index-canaries": TaskMemory(110),
    "merge": TaskMemory(105, 60, SHARD),  # rows are looked at in windows of as many ids
    "neighbours-route": TaskMemory(270), "neighbours-home": TaskMemory(270), "neighbours-remote": TaskMemory(270),
    "neighbours-collect": TaskMemory(270), "neighbours-rows": TaskMemory(270),
    "neighbours": TaskMemory(270), "repair": TaskMemory(270, 60, SHARD),  # stages/neighbours/join_memory.py has the rest
    "neighbours-sample": TaskMemory(125), "neighbours-point": TaskMemory(180), "neighbours-recall": TaskMemory(180),
    "exact-scan": TaskMemory(125, 80, SHARD), "exact-merge": TaskMemory(110),
    "compared": TaskMemory(120, 25, SHARD), "compared-count": TaskMemory(120, 25, SHARD),
    "table-lists": TaskMemory(200, 200, SHARD), "table-lists-store": TaskMemory(120),
    "exposure-named": TaskMemory(160, 60, SHARD), "exposure-match": TaskMemory(170, 220, SHARD),
    "exposure-rows": TaskMemory(170, 220, SHARD),
    "fold": TaskMemory(100, 300, SHARD),
    "fold-lost": TaskMemory(250),  # 64 row groups of 16 bitmaps, each of at most 128 KiB
    "export-positions": TaskMemory(55, 110, SHARD),
    "export-facts": TaskMemory(75, 160, SHARD),
    "compact": TaskMemory(125, 160), "compact-count": TaskMemory(100, 60, SHARD),
    "shard-counts": TaskMemory(100, 60, SHARD), "covered-counts": TaskMemory(100, 25, SHARD),
    "queries": TaskMemory(270),  # 131,072 rows of 64 int64 tokens, four times
    # Weights in documents.
    "tag": TaskMemory(180, 1500), "tag-count": TaskMemory(90, 100),
}
# fmt: on
"""By the name of the kind of tasks."""
