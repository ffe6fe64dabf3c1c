"""Commits: ids given once, transactions found again, numbers never used twice."""

from __future__ import annotations

import multiprocessing

import pytest
from made_up import change, file, shard

from retrodb.errors import ConflictError, RetroDBError
from retrodb.format.entries import PinEntry, SpaceEntry
from retrodb.format.records import OP_DROP_FILE, OP_DROP_SHARD, SEGMENT_RECORDS, DropRecord
from retrodb.format.snapshot import Snapshot
from retrodb.store import conflict_keys
from retrodb.store.commit import commit, commit_first
from retrodb.store.manifest import load_manifest
from retrodb.store.open_storage import open_storage
from retrodb.store.snapshots import read_as_of, read_head, recorded_head, snapshot_numbers
from retrodb.store.storage import Storage

from .actions import BETWEEN, LATER, found, renamed


@pytest.fixture
def storage(any_storage: Storage) -> Storage:
    return any_storage


def test_second_creation_is_a_conflict(storage: Storage) -> None:
    found(storage)
    with pytest.raises(ConflictError, match="exists here already"):
        commit_first(storage, change("other"))


def test_shards_get_ids_in_the_order_of_commits(storage: Storage, base: Snapshot) -> None:
    second = commit(storage, base, change("x", shards=[shard("three", num_chunks=7), shard("four")]))
    shards = load_manifest(storage, second).shards
    assert shards.first_chunk.tolist() == [0, 100, 200, 207]
    assert shards.task == ("one", "two", "three", "four")
    assert second.next_chunk == 307
    assert {f.first_chunk for f in load_manifest(storage, second).files("documents")} == {0, 100, 200, 207}


def test_ids_are_not_given_again_after_their_shard_is_gone(storage: Storage, base: Snapshot) -> None:
    gone = commit(storage, base, change("x", drops=[DropRecord(OP_DROP_SHARD, first_chunk=100)]))
    assert load_manifest(storage, gone).shards.task == ("one",)
    shards = load_manifest(storage, commit(storage, gone, change("y", shards=[shard("three")]))).shards
    assert shards.first_chunk.tolist() == [0, 200]


def test_compacted_shard_keeps_its_ids_and_counts_nothing_twice(storage: Storage, base: Snapshot) -> None:
    compacted = commit(storage, base, LATER["compact"]("x"))
    shards = load_manifest(storage, compacted).shards
    assert (shards.first_chunk.tolist(), shards.num_chunks.tolist()) == ([0], [200])
    assert compacted.next_chunk == base.next_chunk
    assert compacted.totals["chunks"] == base.totals["chunks"]
    assert [f.first_chunk for f in load_manifest(storage, compacted).files("documents")] == [0]


def test_dropped_file_can_come_back(storage: Storage, base: Snapshot) -> None:
    path = "vectors/default/one.npy"
    without = commit(storage, base, change("x", drops=[DropRecord(OP_DROP_FILE, path=path)]))
    assert path not in load_manifest(storage, without).paths()
    again = change("y", files=[file("vectors", path, name="default", first=0, count=100)])
    assert load_manifest(storage, commit(storage, without, again)).paths().count(path) == 1


def test_same_transaction_twice_is_one_commit(storage: Storage, base: Snapshot) -> None:
    own = BETWEEN["ingest, same source"]("x")
    first = commit(storage, base, own)
    commit(storage, first, BETWEEN["filter"]("z"))
    assert commit(storage, base, own) == first
    assert snapshot_numbers(storage) == [0, 1, 2]


def test_file_that_another_commit_added_is_not_listed_twice(storage: Storage, base: Snapshot) -> None:
    embedded = LATER["embed"]("x")
    commit(storage, base, embedded)
    second = commit(storage, base, renamed(embedded, "y"))
    paths = load_manifest(storage, second).paths()
    assert len(paths) == len(set(paths))


def test_entries_are_set_replaced_and_taken_away(storage: Storage, base: Snapshot) -> None:
    second = commit(storage, base, change("x", entries={"pin/a": PinEntry(0), "space/default": None}))
    assert second.entries == {"pin/a": PinEntry(0)}
    assert second.writes == ("pin/a", "space/default")
    assert (second.names(PinEntry), second.entry(SpaceEntry, "default")) == (["a"], None)


def test_as_of_reads_what_was(storage: Storage, base: Snapshot) -> None:
    for name in ("x", "y"):
        commit(storage, read_head(storage), change(name, shards=[shard(name)]))
    assert [len(load_manifest(storage, read_as_of(storage, n)).shards) for n in (0, 1, 2)] == [2, 3, 4]
    assert read_as_of(storage, None).number == 2
    with pytest.raises(RetroDBError, match=r"no snapshot 3.*Snapshots 0 to 2 exist"):
        read_as_of(storage, 3)


def test_only_the_youngest_segment_is_written_anew(storage: Storage, base: Snapshot) -> None:
    many = [file("rejects", f"rejects/{i}.parquet") for i in range(2 * SEGMENT_RECORDS)]
    big = commit(storage, base, change("x", files=many))
    after = commit(storage, big, change("y", shards=[shard("y")]))
    assert [ref.records for ref in big.segments[:2]] == [SEGMENT_RECORDS] * 2
    assert after.segments[:-1] == big.segments[:-1]
    assert after.segments[-1].records == big.segments[-1].records + 5
    assert sum(ref.records for ref in after.segments) == sum(ref.records for ref in base.segments) + len(many) + 5


def test_commit_that_happened_but_failed_is_found_by_its_transaction(
    storage: Storage, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = storage.put_if_absent

    def put_and_fail(path: str, data: bytes) -> bool:
        put(path, data)
        raise RetroDBError("the answer was lost")

    monkeypatch.setattr(storage, "put_if_absent", put_and_fail)
    own = BETWEEN["ingest, same source"]("x")
    assert commit(storage, base, own).transaction == "x"
    assert snapshot_numbers(storage) == [0, 1]


def test_failed_commit_whose_number_another_took_is_tried_again(
    storage: Storage, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = storage.put_if_absent

    def lose_the_race(path: str, data: bytes) -> bool:
        monkeypatch.undo()
        commit(storage, base, BETWEEN["ingest, other source"]("other"))
        raise RetroDBError("the answer was lost")

    monkeypatch.setattr(storage, "put_if_absent", lose_the_race)
    assert commit(storage, base, BETWEEN["ingest, same source"]("x")).number == 2
    assert storage.put_if_absent == put


def test_failed_commit_that_did_not_happen_is_an_error(
    storage: Storage, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, data: bytes) -> bool:
        raise RetroDBError("broken")

    monkeypatch.setattr(storage, "put_if_absent", fail)
    with pytest.raises(RetroDBError, match="broken"):
        commit(storage, base, change("x"))
    assert read_head(storage) == base


def test_eight_processes_commit_one_after_the_other(storage: Storage, base: Snapshot) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_commit_five, args=(storage.url, writer)) for writer in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    head = read_head(storage)
    assert snapshot_numbers(storage) == list(range(41))
    shards = load_manifest(storage, head).shards
    assert shards.first_chunk.tolist() == list(range(0, 4200, 100))
    assert len(set(shards.task)) == 42


def _commit_five(url: str, writer: int) -> None:
    storage = open_storage(url)
    for number in range(5):
        own = change(
            f"{writer}-{number}", conflict_keys.ingest(f"source{writer}"), shards=[shard(f"{writer}-{number}")]
        )
        commit(storage, read_head(storage), own)


def test_every_commit_records_its_number_outside_of_the_snapshots(storage: Storage, base: Snapshot) -> None:
    assert recorded_head(storage) == base.number
    for number in (1, 2, 3):
        commit(storage, read_head(storage), change(f"x{number}"))
        assert recorded_head(storage) == number
    assert len(storage.list("heads")) == 1
    storage.delete(read_head(storage).path)  # lost: now it shows
    assert (read_head(storage).number, recorded_head(storage)) == (2, 3)
