"""The search for near-duplicates in tasks: it gives what one process gives, and its planning reads no documents."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from faulty_storage import Crash, FaultyStorage
from made_documents import made_text, write_documents
from one_process_search import expected_search

from retrodb.config import NearDuplicatesParams
from retrodb.database import Database
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import Bar
from retrodb.engine.run import Engine, Run, run_task
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.format.kinds import kind_of
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.rows import deserialize_rows
from retrodb.stages.context import Context
from retrodb.stages.dedup import clusters, near_clusters, near_documents, near_files, near_join, near_verify
from retrodb.stages.dedup.clusters import Clusters, cluster_keys, read_clusters, read_pairs
from retrodb.stages.dedup.near_duplicates import execute_near_duplicates, plan_near_duplicates, run_near_duplicates
from retrodb.store.storage import LocalStorage
from retrodb.view.view import View

Make = Callable[..., Database]

PARAMS = NearDuplicatesParams(jaccard=0.5, ngram=2, permutations=24, bands="8x3")
MAX_BUCKET = 5


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits at which a few dozen documents make several tasks of every kind."""
    monkeypatch.setattr(near_files, "GROUP_CHUNKS", 12)
    monkeypatch.setattr(near_documents, "PREFIX_DOCUMENTS", 5)
    monkeypatch.setattr(near_join, "PART_ENTRIES", 60)
    monkeypatch.setattr(near_join, "PREFIX_ENTRIES", 12)
    monkeypatch.setattr(near_join, "MAX_BUCKET", MAX_BUCKET)
    monkeypatch.setattr(near_join, "MAX_PAIRS", 6)
    monkeypatch.setattr(near_verify, "TASK_PAIRS", 5)
    monkeypatch.setattr(near_verify, "_BLOCK_CHUNKS", 4)
    monkeypatch.setattr(near_verify, "_BLOCK_SHINGLES", 100)


def made_up(rng: random.Random) -> str:
    """A text that is equal or similar to others, or too short for a shingle."""
    words = made_text(f"family {rng.randrange(5)}", rng.choice([1, 12, 30, 30, 90])).split()
    for _ in range(rng.choice([0, 0, 1, 2, 6])):
        words[rng.randrange(len(words))] = f"x{rng.randrange(1000)}"
    return " ".join(words)


class History:
    """A database that changes at random."""

    def __init__(self, database: Database, folder: Path, seed: int) -> None:
        self.database, self._folder, self._rng, self._number = database, folder, random.Random(seed), 0

    def change(self) -> str:
        """One change; gives its name."""
        name = self._rng.choice(["grow", "grow", "grow", "mirror", "delete", "undelete", "compact", "split"])
        getattr(self, name)()
        return name

    def _documents(self, count: int, **others: str) -> Path:
        self._number += 1
        documents = others | {f"d{self._rng.randrange(40)}": made_up(self._rng) for _ in range(count)}
        return write_documents(self._folder / f"{self._number}.jsonl", documents)

    def grow(self) -> None:
        self.database.ingest([self._documents(self._rng.randrange(1, 15))], source=self._rng.choice("ab"))

    def split(self) -> None:
        for source in "abc":
            crowd = {f"near{n}": f"{made_text(1, 60)} {source}{n}" for n in range(3)}
            self.database.ingest([self._documents(4, same=made_text(1, 60), **crowd)], source=source)

    def mirror(self) -> None:
        self.database.ingest([self._documents(6)], source=self._rng.choice("ab"), mirror=True)

    def delete(self) -> None:
        self.database.filter(doc_ids=[f"d{self._rng.randrange(40)}" for _ in range(6)], source="a", reason="toxic")

    def undelete(self) -> None:
        if "toxic" in self.database.stats().num_deleted_chunks_by_reason:
            self.database.undelete(reason="toxic")

    def compact(self) -> None:
        self.database.compact(min_deleted=0)

    def params(self) -> NearDuplicatesParams:
        """Mostly the same ones, so that pairs of earlier searches are kept."""
        changed = [PARAMS, PARAMS, PARAMS, replace(PARAMS, keep="longest"), replace(PARAMS, keep="newest")]
        return self._rng.choice([*changed, replace(PARAMS, jaccard=0.7), replace(PARAMS, bands="12x2")])


def search_and_compare(context: Context, params: NearDuplicatesParams) -> Counter[str]:
    """Search, compare all that it gives with the reference, and count what happened."""
    before = context.view()
    expected, former_pairs = expected_search(before, params, MAX_BUCKET), all_pairs(before)
    plan = plan_near_duplicates(context, params)
    tombstones = [(t.first_chunk, t.active, deserialize_rows(t.rows).tolist()) for t in plan.tombstones]
    assert tombstones == expected.tombstones
    assert plan.has_changes == expected.has_changes
    if plan.has_changes:
        execute_near_duplicates(context, plan)
        stored = read_clusters(context.view())
        columns = (stored.document, stored.label, stored.keeper, stored.jaccard)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected.clusters
    assert all_pairs(context.view()) == [*(former_pairs if plan.keeps_pairs else []), *expected.new_pairs]
    result = plan.result
    for name in (
        *("num_documents", "num_hashed_documents", "num_compared_pairs"),
        *("num_equal_documents", "num_hot_buckets", "num_removed_chunks"),
    ):
        assert getattr(result, name) == getattr(expected, name), name
    assert result.num_similar_pairs == len(expected.new_pairs)
    assert result.num_clusters == len({row[1] for row in expected.clusters})
    assert result.num_removed_documents == sum(row[0] != row[2] for row in expected.clusters)
    return Counter(
        clusters=result.num_clusters,
        hot=result.num_hot_buckets,
        equal=result.num_equal_documents,
        pairs=result.num_similar_pairs,
        kept=int(plan.keeps_pairs and bool(former_pairs)),
        revoked=sum(not t.active for t in plan.tombstones),
    )


def all_pairs(view: View) -> list[tuple[int, int, float]]:
    return [
        row
        for pairs in read_pairs(view)
        for row in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.jaccard.tolist(), strict=True)
    ]


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.soak) for n in range(4, 60))])
def test_a_search_in_tasks_gives_what_one_process_gives(
    make_database: Make, tmp_path: Path, small_tasks: None, seed: int
) -> None:
    database = make_database({})
    history, seen = History(database, tmp_path, seed), Counter[str]()
    context = Context(LocalStorage(tmp_path / "db"))
    history.split()
    for _ in range(4):
        seen[history.change()] += 1
        seen += search_and_compare(context, history.params())
    assert min(seen[name] for name in ("clusters", "pairs", "equal", "hot")) > 0


class WatchedEngine(Engine):
    """Runs tasks in this process, and says when."""

    def __init__(self) -> None:
        self.is_in_task = False

    def execute(
        self,
        run: Run,
        tasks: Sequence[Task[P, R]],
        function: TaskFunction[P, R],
        bar: Bar,
        *,
        isolated: bool = False,
        extra_bytes: int = 0,
    ) -> Iterable[tuple[Task[P, R], TaskRecord[R]]]:
        for task in tasks:
            self.is_in_task = True
            record = run_task(run, task, function)
            self.is_in_task = False
            yield task, record


class WatchedStorage(LocalStorage):
    """Remembers what is read outside of tasks."""

    def __init__(self, root: Path, engine: WatchedEngine) -> None:
        super().__init__(root)
        self._engine, self.read_outside = engine, list[str]()

    def _note(self, path: str) -> None:
        if not self._engine.is_in_task:
            self.read_outside.append(path)

    def read(self, path: str) -> bytes:
        self._note(path)
        return super().read(path)

    def local(self, path: str) -> Path:
        self._note(path)
        return super().local(path)


def test_planning_reads_no_documents_bands_or_pairs(make_database: Make, tmp_path: Path, small_tasks: None) -> None:
    history = History(make_database({}), tmp_path, 0)
    for _ in range(2):
        history.split()
        engine = WatchedEngine()
        storage = WatchedStorage(tmp_path / "db", engine)
        result = run_near_duplicates(Context(storage, engine), PARAMS)
        assert result.num_similar_pairs > 0
        kinds = Counter(kind_of(path) for path in storage.read_outside)
        records = {"settings", "tokenizer", "snapshots", "manifests", "heads", "runs"}
        assert set(kinds) <= {*records, "tombstones"}, kinds  # the tombstones of the commit
        of_runs = {path.partition("/near/")[2] for path in storage.read_outside if "/near/" in path}
        assert of_runs <= {"clusters.parquet"}, of_runs


def test_parts_of_bands_follow_from_the_number_of_documents_and_are_bounded() -> None:
    assert near_join.parts_of_bands(0, 32) == near_join.parts_of_bands(10_000, 32) == [(0, 32, 0, 1)]
    for num_documents in (10_000, 60_000, 10**7, 10**9):
        parts = near_join.parts_of_bands(num_documents, 32)
        covered = [(band, prefix) for first, end, prefix, _ in parts for band in range(first, end)]
        num_prefixes = parts[0][3]
        assert sorted(covered) == [(band, prefix) for band in range(32) for prefix in range(num_prefixes)]
        assert num_documents / num_prefixes <= near_join.PREFIX_ENTRIES
    assert len(parts) == 2048


def test_clusters_hold_only_documents_that_are_in_a_pair_or_equal(
    make_database: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, held = made_text(1, 100), list[int]()

    def find(documents: near_clusters.LinkedDocuments, *arguments: Any) -> Clusters:
        held.append(len(documents.ids))
        return find_clusters(documents, *arguments)

    find_clusters = near_clusters.find_clusters
    monkeypatch.setattr(near_clusters, "find_clusters", find)
    others = {f"other{n}": made_text(100 + n, 60) for n in range(30)}
    database = make_database(others | {"a": text, "b": text, "c": f"{text} again"})
    assert database.near_duplicates().num_removed_documents == 2
    assert held == [3]


def test_a_search_leaves_nothing_in_its_run_and_one_without_changes_leaves_no_run(
    make_database: Make, tmp_path: Path
) -> None:
    database, storage = (
        make_database({"a": made_text(1, 100), "b": f"{made_text(1, 100)} again"}),
        LocalStorage(tmp_path / "db"),
    )
    database.near_duplicates()
    paths = storage.list("runs")
    assert not [path for path in paths if "/near/" in path]
    for dry_run in (False, True):
        assert database.near_duplicates(dry_run=dry_run).num_removed_documents == 1
        assert storage.list("runs") == paths


def test_bytes_do_not_depend_on_workers_or_interruption(make_database: Make, tmp_path: Path) -> None:
    database = make_database({})
    History(database, tmp_path, 5).split()
    clock, params = "2026-01-01T00:00:00.000000+00:00", replace(PARAMS, jaccard=0.6)

    def committed(name: str, *searches: Callable[[Context], object]) -> dict[str, bytes]:
        storage = LocalStorage(shutil.copytree(tmp_path / "db", tmp_path / name))
        for search in searches:
            search(Context(storage, clock=clock))
        return {record.path: record.digest.sha256 for record in Context(storage).view().manifest.all_files()}

    def search(context: Context) -> object:
        return run_near_duplicates(context, params)

    def with_two_workers(context: Context) -> object:
        return run_near_duplicates(replace(context, engine=LocalEngine(2)), params)

    def interrupted(context: Context) -> object:
        for at in range(8, 10_000, 37):
            try:
                return search(replace(context, storage=FaultyStorage(context.storage, at, "crash")))
            except Crash:
                continue
        raise AssertionError

    one = committed("one", search)
    assert committed("two", with_two_workers) == one
    assert committed("interrupted", interrupted) == one


def test_clusters_are_read_in_blocks(make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make_database({})
    History(database, tmp_path, 1).split()
    database.near_duplicates(jaccard=0.5)
    view = database.view()
    expected, ids = read_clusters(view), np.arange(-1, view.chunks.end + 1)
    keys, reported = cluster_keys(view, ids), database.duplicates()
    label = dict(zip(expected.document.tolist(), expected.label.tolist(), strict=True))
    assert keys.tolist() == [label.get(document, document) for document in view.chunks.document_ids(ids).tolist()]
    assert [row.first_chunk for row in reported] == expected.removed.tolist() != []

    def rows_one_by_one(path: Path) -> Iterator[pa.Table]:
        for table in iterate_row_groups(path):
            yield from (table.slice(row, 1) for row in range(table.num_rows))

    monkeypatch.setattr(clusters, "iterate_row_groups", rows_one_by_one)
    np.testing.assert_array_equal(cluster_keys(view, ids), keys)
    assert database.duplicates() == reported
    assert read_clusters(view).table() == expected.table()
