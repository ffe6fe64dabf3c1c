"""Collection deletes what nothing needs, after the grace, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import change, file, id_of

from retrodb.engine.task import TaskRecord, dump_record
from retrodb.errors import ConflictError, DamagedFileError, NotADatabaseError, UsageError
from retrodb.format.entries import PinEntry
from retrodb.format.kinds import KINDS
from retrodb.format.records import OP_DROP_FILE, DropRecord
from retrodb.format.snapshot import Snapshot
from retrodb.store import conflict_keys
from retrodb.store.collection import DEFAULT_GRACE, CollectionPlan, execute_collection, plan_collection
from retrodb.store.commit import commit, commit_first
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import read_as_of, read_head, snapshot_numbers
from retrodb.store.storage import LocalStorage

START = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(days=7)


def collect(storage: LocalStorage, day: float, keep: int = 1) -> CollectionPlan:
    plan = plan_collection(storage, keep, START + timedelta(days=day), GRACE)
    execute_collection(storage, plan)
    return plan


def add(storage: LocalStorage, name: str) -> Snapshot:
    """Commit one file that really exists."""
    path = f"rejects/{id_of(name)}.parquet"
    storage.write(path, b"")
    return commit(storage, read_head(storage), change(id_of(name), files=[file("rejects", path)]))


def remove(storage: LocalStorage, name: str) -> Snapshot:
    drop = DropRecord(OP_DROP_FILE, path=f"rejects/{id_of(name)}.parquet")
    return commit(storage, read_head(storage), change(f"without {name}", drops=[drop]))


@pytest.mark.usefixtures("base")
def test_unneeded_file_is_marked_first_and_deleted_after_the_grace(storage: LocalStorage) -> None:
    storage.write(f"vectors/default/{id_of('stray')}.npy", b"")
    for day, is_there in ((0, True), (1, True), (7, True), (7.1, False)):
        collect(storage, day)
        assert storage.exists(f"vectors/default/{id_of('stray')}.npy") == is_there
    assert orjson.loads(storage.read("collection.json")) == {}


@pytest.mark.usefixtures("base")
def test_file_that_is_needed_again_loses_its_mark(storage: LocalStorage) -> None:
    storage.write(f"rejects/{id_of('a')}.parquet", b"")
    collect(storage, 0)
    add(storage, "a")
    collect(storage, 8)
    assert storage.exists(f"rejects/{id_of('a')}.parquet")
    remove(storage, "a")
    collect(storage, 9)
    collect(storage, 15)
    assert storage.exists(f"rejects/{id_of('a')}.parquet")
    collect(storage, 17)
    assert not storage.exists(f"rejects/{id_of('a')}.parquet")


@pytest.mark.usefixtures("base")
def test_files_of_live_and_kept_snapshots_stay(storage: LocalStorage) -> None:
    add(storage, "a")
    remove(storage, "a")
    for day in (0, 100):
        assert collect(storage, day, keep=2).expire == ((0,) if day == 0 else ())
    assert storage.exists(f"rejects/{id_of('a')}.parquet")
    assert f"rejects/{id_of('a')}.parquet" in load_manifest(storage, read_as_of(storage, 1)).paths()


@pytest.mark.usefixtures("base")
def test_expired_snapshot_leaves_a_stub_that_says_so(storage: LocalStorage) -> None:
    before = add(storage, "a")
    remove(storage, "a")
    assert collect(storage, 0).expire == (0, 1)
    assert snapshot_numbers(storage) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"snapshot 1 expired on 2026-01-01.*retrodb snapshots"):
        read_as_of(storage, 1)
    assert not storage.put_if_absent(before.path, b"another past")
    collect(storage, 8)
    assert not storage.exists(f"rejects/{id_of('a')}.parquet")
    assert add(storage, "b").number == 3
    assert load_manifest(storage, read_head(storage)).paths()


def test_commit_over_expired_snapshots_still_knows_their_marks(storage: LocalStorage, base: Snapshot) -> None:
    commit(storage, base, change("x", conflict_keys.ingest("a")))
    add(storage, "later")
    collect(storage, 0)
    with pytest.raises(ConflictError, match="snapshot 1"):
        commit(storage, base, change("y", conflict_keys.ingest("a")))
    assert commit(storage, base, change("y", conflict_keys.ingest("b"))).number == 3


@pytest.mark.usefixtures("base")
def test_pinned_snapshot_is_a_root_until_it_is_unpinned(storage: LocalStorage) -> None:
    pinned = add(storage, "a")
    remove(storage, "a")
    commit(storage, read_head(storage), change("pin", entries={"pin/training-7": PinEntry(pinned.number)}))
    for day in (0, 100):
        collect(storage, day)
    assert storage.exists(f"rejects/{id_of('a')}.parquet")
    assert f"rejects/{id_of('a')}.parquet" in load_manifest(storage, read_as_of(storage, 1)).paths()
    commit(storage, read_head(storage), change("unpin", entries={"pin/training-7": None}))
    assert collect(storage, 101).expire == (1, 3)
    collect(storage, 109)
    assert not storage.exists(f"rejects/{id_of('a')}.parquet")


@pytest.mark.usefixtures("base")
def test_open_run_is_a_root_until_it_is_committed(storage: LocalStorage) -> None:
    storage.write(f"runs/{id_of('r1')}/plan.json", b"{}")
    storage.write(f"runs/{id_of('r1')}/spool/0.arrow", b"")
    storage.write(f"chunks/{id_of('out')}.parquet", b"")
    storage.write(
        f"runs/{id_of('r1')}/tasks/{id_of('t')}.json",
        dump_record(TaskRecord(id_of("t"), (file("chunks", f"chunks/{id_of('out')}.parquet"),))),
    )
    for day in (0, 100):
        assert collect(storage, day).open_runs == (id_of("r1"),)
    assert len(storage.list("runs")) == 3
    assert storage.exists(f"chunks/{id_of('out')}.parquet")
    commit(storage, read_head(storage), change(id_of("r1"), files=[file("chunks", f"chunks/{id_of('out')}.parquet")]))
    assert collect(storage, 101).open_runs == ()
    collect(storage, 109)
    assert storage.list("runs") == []
    assert storage.exists(f"chunks/{id_of('out')}.parquet")


@pytest.mark.usefixtures("base")
def test_run_of_an_expired_snapshot_is_not_open(storage: LocalStorage) -> None:
    storage.write(f"runs/{id_of('a')}/plan.json", b"{}")
    add(storage, "a")
    add(storage, "b")
    collect(storage, 0)
    assert collect(storage, 8).delete
    assert storage.list("runs") == []


@pytest.mark.usefixtures("base")
def test_unfinished_files_and_old_segments_go_too(storage: LocalStorage) -> None:
    storage.write(f"tmp/{id_of('left')}-host.7-behind", b"")
    old = read_head(storage).segments[0].digest
    add(storage, "a")
    for day in (0, 8):
        collect(storage, day)
    assert storage.list("tmp") == []
    assert storage.list("manifests") == [f"manifests/{ref.digest}.parquet" for ref in read_head(storage).segments]
    assert old not in {ref.digest for ref in read_head(storage).segments}


@pytest.mark.usefixtures("base")
def test_files_that_are_not_the_databases_are_left_alone(storage: LocalStorage) -> None:
    mine = ("notes.txt", "my-folder/x.parquet", "retrodb.toml", "tokenizer.json", "locks/a.lock")
    for path in mine:
        storage.write(path, b"")
    for day in (0, 100):
        collect(storage, day)
    assert all(storage.exists(path) for path in mine)


FOREIGN_NAMES = (
    "thesis.pdf",
    "0.parquet",
    "data.npy",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}.txt",
    id_of("a"),
    "x.json",
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [kind.pattern.partition("/")[0] for kind in KINDS.values() if "/" in kind.pattern] + ["tmp"]
            ),
            st.sampled_from(["", "default/", f"default/{id_of('b')}/", f"{id_of('c')}/", "my files/2024/"]),
            st.sampled_from(FOREIGN_NAMES),
        ),
        max_size=8,
    )
)
def test_no_tree_of_foreign_files_is_touched_or_stops_collection(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[str, str, str]]
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("db"))
    commit_first(storage, change("init"))
    foreign = {"".join((f"{folder}/", inside, name)): f"{folder}{name}".encode() for folder, inside, name in places}
    for path, content in foreign.items():
        storage.write(path, content)
    for day in (0, 100, 200):
        collect(storage, day)
    assert {path: storage.read(path) for path in foreign} == foreign


@pytest.mark.usefixtures("base")
def test_marks_under_a_wrong_clock_start_the_grace_again(storage: LocalStorage) -> None:
    stray = f"rejects/{id_of('stray')}.parquet"
    storage.write(stray, b"")
    collect(storage, -20_000)  # 1971
    collect(storage, 0)
    assert storage.exists(stray)
    collect(storage, 6)
    assert storage.exists(stray)
    collect(storage, 8)
    assert not storage.exists(stray)


@pytest.mark.usefixtures("base")
def test_marks_of_the_future_start_the_grace_again(storage: LocalStorage) -> None:
    stray = f"rejects/{id_of('stray')}.parquet"
    storage.write(stray, b"")
    collect(storage, 20_000)
    for day, is_there in ((0, True), (6, True), (8, False)):
        collect(storage, day)
        assert storage.exists(stray) == is_there


@pytest.mark.usefixtures("base")
def test_planning_writes_nothing(storage: LocalStorage) -> None:
    storage.write(f"vectors/default/{id_of('stray')}.npy", b"")
    before = storage.list("")
    plan = plan_collection(storage, 1, START, GRACE)
    assert plan.marked[f"vectors/default/{id_of('stray')}.npy"] == START.isoformat(timespec="seconds")
    assert storage.list("") == before


@pytest.mark.usefixtures("base")
def test_file_that_became_live_after_the_plan_is_spared(storage: LocalStorage) -> None:
    storage.write(f"rejects/{id_of('a')}.parquet", b"")
    collect(storage, 0)
    plan = plan_collection(storage, 1, START + timedelta(days=8), GRACE)
    assert f"rejects/{id_of('a')}.parquet" in plan.delete
    add(storage, "a")
    execute_collection(storage, plan)
    assert storage.exists(f"rejects/{id_of('a')}.parquet")


@pytest.mark.parametrize("path", ["collection.json", f"runs/{id_of('r')}/tasks/{id_of('t')}.json"])
@pytest.mark.usefixtures("base")
def test_what_does_not_read_stops_collection(storage: LocalStorage, path: str) -> None:
    storage.write(path, b"[")
    with pytest.raises(DamagedFileError, match=f"{path}: damaged"):
        collect(storage, 0)


def test_impossible_requests_are_refused(storage: LocalStorage, base: Snapshot) -> None:
    with pytest.raises(UsageError, match="0 snapshots to keep"):
        collect(storage, 0, keep=0)
    with pytest.raises(NotADatabaseError):
        plan_collection(LocalStorage(storage.root / "elsewhere"), 1, START, DEFAULT_GRACE)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.sampled_from(["add", "remove", "pin", "collect", "stray"]), max_size=12), keep=st.integers(1, 3)
)
def test_every_readable_snapshot_has_all_its_files(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], keep: int
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("db"))
    commit_files = [file("rejects", f"rejects/{id_of('0')}.parquet")]
    storage.write(f"rejects/{id_of('0')}.parquet", b"")
    commit_first(storage, change("init", files=commit_files))
    for number, step in enumerate([*steps, "collect", "collect"], start=1):
        head = read_head(storage)
        live = load_manifest(storage, head).paths()
        if step == "add":
            add(storage, str(number))
        elif step == "remove" and live:
            commit(storage, head, change(f"-{number}", drops=[DropRecord(OP_DROP_FILE, path=live[0])]))
        elif step == "pin":
            commit(storage, head, change(f"pin{number}", entries={f"pin/{number}": PinEntry(head.number)}))
        elif step == "stray":
            storage.write(f"rejects/{id_of(f'stray{number}')}.parquet", b"")
        elif step == "collect":
            collect(storage, 10 * number, keep)
        for each in snapshot_numbers(storage):
            try:
                snapshot = read_as_of(storage, each)
            except UsageError:
                continue
            assert all(storage.exists(path) for path in load_manifest(storage, snapshot).paths())
