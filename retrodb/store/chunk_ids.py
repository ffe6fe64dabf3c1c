"""How chunks get their ids: dense and ascending, at commit, and never given again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrodb.format.records import FileRecord, Record, ShardRecord


@dataclass(frozen=True)
class NewShard:
    """A shard with the files that cover it. It gets its ids at commit, unless it has them (compacted or restored)."""

    record: ShardRecord
    files: tuple[FileRecord, ...]

    @property
    def has_ids(self) -> bool:
        """Whether its chunks had ids before."""
        return self.record.first_chunk >= 0


def give_ids(shards: Sequence[NewShard], next_chunk: int) -> tuple[list[Record], int]:
    """The manifest records of new shards, and the next free id.

    A new shard gets the ids from `next_chunk` onwards; one that is compacted or restored keeps the ids that it had.
    """
    records: list[Record] = []
    for shard in shards:
        placed = shard.record if shard.has_ids else replace(shard.record, first_chunk=next_chunk)
        records.append(placed)
        records.extend(file.at(placed.first_chunk) for file in shard.files)
        next_chunk = max(next_chunk, placed.end_chunk)
    return records, next_chunk
