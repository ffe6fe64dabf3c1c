"""A long log of the manifest is written again with what still counts, and says the same as before."""

from __future__ import annotations

import random

import pytest
from made_up import change, file, shard

from retrodb.format.records import (
    OP_DROP_FILE,
    OP_DROP_SHARD,
    CountsRecord,
    DropRecord,
    ScreenedRecord,
    records_to_table,
)
from retrodb.format.snapshot import Snapshot
from retrodb.store import commit as commit_module
from retrodb.store.commit import commit
from retrodb.store.manifest import Manifest, load_manifest
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage


def said(manifest: Manifest) -> dict[str, object]:
    """Everything that a manifest is asked."""
    return {
        "files": manifest.all_files(),
        "shards": [manifest.shards.record(number) for number in range(len(manifest.shards))],
        "counts": dict(manifest.counts),
        "screened": manifest.screened_ranges("x@1"),
        "sizes": manifest.size_by_kind(),
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_checkpoint_says_what_the_log_says(seed: int) -> None:
    rng, log, next_chunk = random.Random(seed), [], 0
    shards: list[int] = []
    for step in range(60):
        match rng.randrange(6):
            case 0:
                new = shard(f"t{step}", num_chunks=rng.randint(1, 50), first=next_chunk)
                log += [new.record, *new.files]
                shards.append(next_chunk)
                next_chunk = new.record.end_chunk
            case 1 if shards:
                log.append(DropRecord(OP_DROP_SHARD, first_chunk=shards.pop(rng.randrange(len(shards)))))
            case 2:
                log.append(file("purged", f"purged/{rng.randrange(9)}"))
            case 3:
                log.append(DropRecord(OP_DROP_FILE, path=f"purged/{rng.randrange(9)}"))
            case 4:
                log.append(ScreenedRecord("x@1", rng.randrange(100), rng.randint(1, 30)))
            case 5 if shards:
                log.append(CountsRecord(rng.choice(shards), rng.choice(["", "gone"]), rng.randrange(9), 1, 2, 3))
    manifest = Manifest(records_to_table(log))
    table = manifest.live_table()
    assert said(Manifest(table)) == said(manifest)
    assert Manifest(table).live_table().equals(table)


def test_a_long_log_is_rewritten_and_older_snapshots_stay(
    storage: LocalStorage, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_module, "CHECKPOINT_RECORDS", 10)
    manifests, sizes = {}, []
    for number in range(30):
        drops = [DropRecord(OP_DROP_FILE, f"purged/{number - 1}")]
        head = commit(
            storage, read_head(storage), change(f"c{number}", files=[file("purged", f"purged/{number}")], drops=drops)
        )
        manifests[head.number] = head
        sizes.append(sum(segment.records for segment in head.segments))
        assert "purged/29" not in load_manifest(storage, head).paths() or number == 29
    assert max(sizes) <= 30
    assert sorted(sizes) != sizes
    for number, head in enumerate(manifests.values()):
        assert f"purged/{number}" in load_manifest(storage, head).paths()
        assert f"purged/{number - 1}" not in load_manifest(storage, head).paths()
    assert head.totals["checkpoint"] > 0
