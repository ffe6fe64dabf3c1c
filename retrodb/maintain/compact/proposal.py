"""When to propose a compaction: many small shards, which the compaction would join."""

from __future__ import annotations

from retrodb.maintain.compact.policy import ShardState, choose_compactions
from retrodb.view.view import View

SMALL_SHARD_CHUNKS = 1024
"""A shard with fewer chunks is small: its files take longer to open than to read."""

_MIN_SMALL_SHARDS = 16  # fewer cost a command less than 0.1 s


def propose_compaction(view: View) -> str:
    """A sentence that proposes a compaction; "" unless most shards are small and a compaction would join half of these.

    It reads the manifest alone.
    """
    num_rows = {record.span: record.num_rows for record in view.manifest.files("documents")}
    records = (view.shards.record(index) for index in range(len(view.shards)))
    shards = [
        ShardState(record.source, *record.span, num_rows.get(record.span, record.num_chunks), num_deleted=0)
        for record in records
    ]
    num_small = sum(shard.num_rows < SMALL_SHARD_CHUNKS for shard in shards)
    if num_small < _MIN_SMALL_SHARDS or 2 * num_small <= len(shards):
        return ""
    num_removed = sum(len(joined) - 1 for joined in choose_compactions(shards, min_deleted=1.0))
    if 2 * num_removed < num_small:
        return ""
    return (
        f"{num_small:,} of {len(shards):,} shards hold fewer than {SMALL_SHARD_CHUNKS:,} chunks:"
        " run 'retrodb compact DB'"
    )
