"""Rows of a restricted table read lists that have chunks for it, whatever else changes in the database."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_documents import write_documents

import retrodb
from retrodb.database import Database
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import TableEntry
from retrodb.stages.index.operating_point import home_lists
from retrodb.stages.neighbours import command, recall_sample
from retrodb.stages.neighbours.repair_state import planned_state
from retrodb.stages.neighbours.truth_tasks import publish_run_array
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.view.compared_sets import LISTS, ComparedSets

from .test_range_join import contents
from .test_routed_tables import documents

LISTS_OF_INDEX = 64
K = 4
OPTIONS: dict[str, Any] = {"k": K, "spare_neighbours": 2, "recall": 0.9, "where": "source = 'few'"}
FEW = range(10_000, 10_030)  # numbers of the documents of this source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path) -> Path:
    """2,600 documents, 30 of another source, and an index of 64 lists in several parts."""
    folder = tmp_path_factory.mktemp("restricted")
    db = retrodb.create(folder / "db", tokenizer=str(made_tokenizer), encoder="hashing:32")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("shard", "tokenize"):
            patch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", 1024)
        patch.setattr("retrodb.stages.index.merge.choose_merges", lambda sizes: [])
        grow(db, folder, "many", range(2600), factory=f"IVF{LISTS_OF_INDEX},SQ8")
        grow(db, folder, "few", FEW)
    db.filter(doc_ids=["d3", "d10001"], reason="gone")
    return folder


def grow(db: Database, folder: Path, source: str, numbers: range, **options: Any) -> None:
    texts = documents(numbers.start, numbers.stop)
    db.ingest([write_documents(folder / f"{source}-{numbers.start}.jsonl", texts)], source=source)
    db.embed()
    db.index(**options)


@pytest.fixture
def copy(made: Path) -> Callable[..., Database]:
    def of_name(name: str, **options: Any) -> Database:
        shutil.copytree(made / "db", made / name)
        return retrodb.open(made / name, **options)

    return of_name


def entry_of(db: Database, table: str = "self") -> TableEntry:
    return db.view().snapshot.existing(TableEntry, table)


def lists_with_chunks(db: Database) -> list[int]:
    """Those of live chunks of the source."""
    view = db.view()
    ids = np.arange(view.chunks.end)
    ids = ids[[source == "few" for source in np.array(view.shards.source)[view.shards.locate(ids)[0]]]]
    embedded = np.concatenate([part.ids_N for part in _parts(db)])
    ids = ids[view.chunks.is_live(ids) & np.isin(ids, embedded)]
    return sorted(set(home_lists(view, "default", ids).tolist()))


def _parts(db: Database) -> list[Any]:
    from retrodb.stages.index.live_parts import live_parts

    return list(live_parts(db.view(), "default"))


def stored_lists(db: Database, table: str = "self") -> list[int]:
    return list(ComparedSets.read(db.view(), table).rows(LISTS, 0, LISTS_OF_INDEX))


def recall(db: Database, table: str) -> float:
    """Of all rows of a table, against an exact one that is made here, once."""
    if "truth" not in db.view().snapshot.names(TableEntry):
        db.neighbours(table="truth", **OPTIONS | {"exact": True})
    rows, truth = db.neighbour_table("truth").rows(), db.neighbour_table("truth")
    true = truth.read(rows)[1]
    kth = np.where(np.isfinite(true), true, -np.inf).max(axis=1, keepdims=True)
    ids, distances = db.neighbour_table(table).read(rows)
    return float(((distances <= kth) & (ids >= 0)).sum() / np.isfinite(true).sum())


VARIANTS: dict[str, dict[str, Any]] = {
    "a condition": {},
    "routed": {"route_ranges": 16},
    "one list": {"where": "doc_id = 'd10002'"},
    "a sample": {"where": None, "sample": 0.01, "recall": 0.8},
    "wide": {"where": "source = 'many'"},
    "starved": {"k": 60, "recall": 0.1},
    "none": {"where": "doc_id = 'nobody'"},
}
EXECUTIONS = [("five", 1, 5), ("two workers", 2, 3), ("many", 1, 100)]  # name, workers, ranges of lists


@pytest.mark.parametrize("name", VARIANTS)
def test_a_restricted_table_is_the_same_for_any_execution(copy: Callable[..., Database], name: str) -> None:
    options = OPTIONS | VARIANTS[name]
    expected = copy(f"{name}-1")
    whole = expected.neighbours(list_ranges=1, **options)
    for variant, workers, ranges in EXECUTIONS if name == "a condition" else EXECUTIONS[:1]:
        db = copy(f"{name}-{variant}", workers=workers)
        result = db.neighbours(list_ranges=ranges, **options)
        assert contents(db) == contents(expected)
        assert entry_of(db) == entry_of(expected)
        assert stored_lists(db) == stored_lists(expected)
        assert replace(result, ranges_per_row=1.0, exchanged_bytes=0) == whole
    entry = entry_of(expected)
    assert (entry.filled_lists > 0) == (name not in ("wide", "none"))
    assert entry.filled_lists == len(stored_lists(expected))
    if entry.filled_lists:
        assert entry.nprobe <= entry.filled_lists < LISTS_OF_INDEX


def test_only_lists_with_chunks_are_read(copy: Callable[..., Database], monkeypatch: pytest.MonkeyPatch) -> None:
    db = copy("read")
    expected, probed = lists_with_chunks(db), set[int]()
    scan = retrodb.ann.join.scan_lists_of  # type: ignore[attr-defined]

    def noted(queries: Any, lists_QA: Any, *rest: Any) -> Any:
        probed.update(lists_QA[lists_QA >= 0].tolist())
        return scan(queries, lists_QA, *rest)

    monkeypatch.setattr("retrodb.ann.join.scan_lists_of", noted)
    result = db.neighbours(list_ranges=1, **OPTIONS)
    assert result.nprobe < len(expected) < LISTS_OF_INDEX / 2
    assert stored_lists(db) == sorted(probed) == expected
    assert recall(db, "self") > 0.87


def test_a_table_that_reads_all_its_lists_equals_an_exact_one(copy: Callable[..., Database]) -> None:
    db = copy("exact")
    options = OPTIONS | {"k": 100, "spare_neighbours": 0}
    assert db.neighbours(**options).num_short == db.neighbours(table="exact", **options, exact=True).num_short > 0
    ours, exact = db.neighbour_table("self"), db.neighbour_table("exact")
    for found, true in zip(ours.stored(ours.rows()), exact.stored(exact.rows()), strict=True):
        np.testing.assert_array_equal(found, true)


def test_a_repair_reads_the_lists_of_new_chunks(copy: Callable[..., Database], tmp_path: Path) -> None:
    db = copy("repaired")
    db.neighbours(**OPTIONS)
    before, lists_before = entry_of(db), stored_lists(db)
    grow(db, tmp_path, "few", range(20_000, 20_015))
    state = planned_state(db.view().storage, PlannedSnapshot.of(db.view()), "self")
    assert state.probes.nprobe == -(-before.nprobe * len(state.filled_lists) // before.filled_lists)
    [result] = db.repair_neighbours()
    assert result.num_improved > 0
    assert result.num_recomputed < result.num_rows / 2
    assert set(lists_before) < set(stored_lists(db)) == set(lists_with_chunks(db)) | set(lists_before)
    entry = entry_of(db)
    assert (entry.nprobe, entry.filled_lists) == (before.nprobe, before.filled_lists)
    assert not db.repair_neighbours()[0].num_improved
    assert db.neighbours(**OPTIONS).snapshot == result.snapshot, "it is current"
    db.neighbours(table="rebuilt", **OPTIONS)
    assert recall(db, "self") >= recall(db, "rebuilt") - 0.005


def test_computed_rows_of_a_repair_are_those_of_a_table_with_the_same_probes(
    copy: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrodb.stages.neighbours import repair_task

    db = copy("same rule")
    db.neighbours(**OPTIONS)
    grow(db, tmp_path, "few", range(20_000, 20_015))
    computed: list[tuple[Int64Array, Int64Array]] = []
    recompute = repair_task._recompute

    def noted(state: Any, rows: Any, *rest: Any) -> Any:
        nearest = recompute(state, rows, *rest)
        computed.append((rows, nearest[0].copy()))
        return nearest

    state = planned_state(db.view().storage, PlannedSnapshot.of(db.view()), "self")
    probes, filled = state.probes, len(state.filled_lists)
    with monkeypatch.context() as patch:
        patch.setattr(repair_task, "_recompute", noted)
        db.repair_neighbours()
    assert computed
    point = command.OperatingPoint(probes.nprobe, 0.9, None, filled)
    monkeypatch.setattr(command, "_choose_point", lambda *args: point)
    db.neighbours(table="same", **OPTIONS)
    for rows, ids in computed:
        np.testing.assert_array_equal(db.neighbour_table("same").stored(rows)[0], ids)


@pytest.mark.parametrize("options", [{}, {"route_ranges": 16}], ids=["plain", "routed"])
def test_many_updates_lose_no_recall(
    copy: Callable[..., Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    db = copy(f"updated-{request.node.callspec.id}")
    db.neighbours(**OPTIONS | options)
    random = np.random.default_rng(0)
    for number in range(6):
        start = 20_000 + 100 * number
        grow(db, tmp_path, "few", range(start, start + 4))
        grow(db, tmp_path, "many", range(start + 50, start + 60))
        gone = random.integers(0, 2600, 40).tolist() + random.choice(FEW, 2).tolist()
        db.filter(doc_ids=[f"d{each}" for each in gone], reason=f"gone {number}")
        if number % 3 == 2:
            db.compact(min_deleted=0.01)
        db.repair_neighbours()
    assert set(lists_with_chunks(db)) <= set(stored_lists(db))
    db.neighbours(table="rebuilt", **OPTIONS | options)
    assert recall(db, "self") >= recall(db, "rebuilt") - 0.03, "whose lists were chosen on another sample"
    state = planned_state(db.view().storage, PlannedSnapshot.of(db.view()), "self")
    sizes = np.bincount(state.filled_lists, minlength=LISTS_OF_INDEX)  # with lists that lost their chunks
    point = command.OperatingPoint(state.probes.nprobe, 0.9, state.probes.routing, len(state.filled_lists))
    monkeypatch.setattr(command, "_choose_point", lambda *args: point)
    monkeypatch.setattr(
        recall_sample,
        "filled_list_sizes",
        lambda context, run, *rest: publish_run_array(context.storage, run.id, "sizes", sizes),
    )
    db.neighbours(table="same", **OPTIONS | options)
    assert recall(db, "self") >= recall(db, "same") - 0.005, "a rebuild that reads the same lists"


def test_rows_of_a_query_set_read_the_same_lists(copy: Callable[..., Database], tmp_path: Path) -> None:
    tables = []
    for ranges in (1, 6):
        db = copy(f"queries-{ranges}")
        db.add_queries("asked", [write_documents(tmp_path / f"{ranges}.jsonl", documents(30_000, 30_200))])
        db.embed()
        result = db.neighbours(queries="asked", list_ranges=ranges, **OPTIONS)
        assert result.nprobe < entry_of(db, "asked").filled_lists
        grow(db, tmp_path, "few", range(20_000, 20_010))
        [repaired] = db.repair_neighbours(table="asked")
        assert repaired.num_improved > 0
        tables.append(contents(db, "asked"))
    assert tables[0] == tables[1]


def test_a_lost_file_of_lists_is_repaired(copy: Callable[..., Database]) -> None:
    db = copy("lost")
    db.neighbours(**OPTIONS)
    view, table, lists = db.view(), contents(db), stored_lists(db)
    for record in view.manifest.files("joined", "self"):
        if ComparedSets([view.files.open(record)]).stored(LISTS):
            Path(view.storage.local(record.path)).unlink()
    assert [damage.path.split("/")[0] for damage in db.check().damaged] == ["joined"]
    db.repair()
    db = retrodb.open(db.path)
    assert not db.check(read_data=True).damaged
    assert (contents(db), stored_lists(db)) == (table, lists)
