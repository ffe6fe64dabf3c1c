"""A database of 20,000 shards and 16 billion chunks, in made-up records: what is asked often must not grow with it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from made_up import change, file, shard

from retrodb.format.snapshot import Snapshot
from retrodb.store.commit import commit, commit_first
from retrodb.store.manifest import Manifest, load_manifest
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage

SHARDS, CHUNKS = 20_000, 800_000
BATCH = 1_000_000


@dataclass(frozen=True)
class Simulated:
    """A database and its head."""

    storage: LocalStorage
    head: Snapshot
    manifest: Manifest


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(tmp_path_factory.mktemp("large"), SHARDS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(tmp_path_factory.mktemp("small"), 20)


def simulate(folder: Path, num_shards: int) -> Simulated:
    """Every shard with its four files, vectors, and two files of an index part."""
    storage = LocalStorage(folder)
    head = commit_first(storage, change("init"))
    shards = [shard(f"{i:032x}", f"source{i % 7}", CHUNKS, 1000) for i in range(num_shards)]
    head = commit(storage, head, change("ingest", shards=shards))
    coverage = [
        file(kind, f"{kind}/default/{i:032x}{ending}", name="default", first=i * CHUNKS, count=CHUNKS)
        for i in range(num_shards)
        for kind, ending in (("vectors", ".npy"), ("parts", "/search_codes.npy"), ("parts", "/codes.npy"))
    ]
    head = commit(storage, head, change("embed", files=coverage))
    return Simulated(storage, head, load_manifest(storage, head))


def test_opening_takes_under_two_seconds(large: Simulated) -> None:
    def open_it() -> None:
        manifest = load_manifest(large.storage, read_head(large.storage))
        assert len(manifest.shards) >= SHARDS
        for kind in ("documents", "chunks", "tokens", "ids", "vectors"):
            assert len(Coverage(manifest.files(kind), VerifiedFiles(large.storage)).records) >= SHARDS

    assert best_time("open, with what covers which ids", open_it, clock=time.process_time) < 2
    show("peak memory of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")
    show("manifest on disk", sum(p.stat().st_size for p in large.storage.root.rglob("*.parquet")) / 2**20, "MiB")
    assert int(large.manifest.shards.num_chunks.sum()) == SHARDS * CHUNKS > 2**33


def test_commit_takes_under_a_second_and_does_not_grow(large: Simulated, small: Simulated) -> None:
    times = {}
    for name, database in (("large", large), ("small", small)):
        times[name] = best_time(f"commit of a shard, {name} database", Commits(database), repeat=7)
    assert times["large"] < 1
    assert times["large"] < 3 * times["small"] + 0.05


def test_rebased_commit_takes_under_a_second(large: Simulated) -> None:
    commit(large.storage, read_head(large.storage), change("in between"))
    assert best_time("rebased commit of a shard", Commits(large, base=large.head)) < 1


class Commits:
    """Commits one more shard with every call, planned on a fixed base or on the head."""

    number = 0

    def __init__(self, database: Simulated, base: Snapshot | None = None) -> None:
        self.storage, self.base = database.storage, base

    def __call__(self) -> None:
        Commits.number += 1
        task = f"{Commits.number:030x}ff"
        dead = file("tombstones", f"tombstones/{task}.parquet")
        own = change(task, shards=[shard(task, "new", CHUNKS)], files=[dead])
        commit(self.storage, self.base or read_head(self.storage), own)


def test_id_to_shard_and_row_takes_under_a_microsecond(large: Simulated) -> None:
    ids = np.random.default_rng(0).integers(0, SHARDS * CHUNKS, BATCH)
    seconds = best_time("1 M ids to shard and row", lambda: large.manifest.shards.locate(ids))
    assert seconds / BATCH < 1e-6
    shards, rows = large.manifest.shards.locate(ids)
    assert np.array_equal(large.manifest.shards.first_chunk[shards] + rows, ids)


def test_id_to_file_and_position_stays_within_microseconds(large: Simulated) -> None:
    """The dearest case: every file of 20,000 is hit, by 50 ids."""
    vectors = Coverage(large.manifest.files("vectors"), VerifiedFiles(large.storage))
    ids = np.random.default_rng(0).integers(0, SHARDS * CHUNKS, BATCH)
    assert best_time("1 M ids to file and position", lambda: list(vectors.lookup(ids))) / BATCH < 5e-6


def best_time(
    what: str, act: Callable[[], object], repeat: int = 3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the quickest of some runs: other work of the machine does not count."""
    times = []
    for _ in range(repeat):
        start = clock()
        act()
        times.append(clock() - start)
    show(what, min(times) * 1000, "ms")
    return min(times)


def show(what: str, value: float, unit: str) -> None:
    print(f"{what}: {value:,.1f} {unit}")
