"""Recall is measured on what the database cannot answer with itself, and the point that is stored is the one used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from made_documents import made_text, write_documents

from retrodb.ann.exact import exact_topk
from retrodb.ann.search import search
from retrodb.bench.heldout import held_out_queries
from retrodb.bench.report import writer_of
from retrodb.bench.true_neighbours import true_neighbours
from retrodb.database import Database
from retrodb.errors import ConfigError, InputError, MissingDependency, MissingStep, UsageError
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import live_parts
from retrodb.stages.index.operating_point import OperatingPoint, stored_point
from retrodb.store.scratch import ScratchStorage
from retrodb.store.storage import LocalStorage

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    database = make_database({str(i): made_text(i, 400) for i in range(60)})
    database.embed()
    database.index(factory="IVF8,SQ8")
    return database


def test_the_curve_ends_at_recall_1_and_the_points_follow_it(database: Database, tmp_path: Path) -> None:
    report = database.bench_recall(k=3, report=tmp_path / "report.json")
    assert [point.nprobe for point in report.curve] == list(range(1, 9))
    recalls = [point.recall.mean for point in report.curve]
    assert recalls == sorted(recalls)
    assert report.curve[-1].recall.mean == 1
    assert report.curve[-1].recall.low < 1, "some queries cannot prove that all others are answered too"
    assert report.curve[-1].scanned <= report.num_vectors
    assert 1 <= len(report.points) <= 3
    for point in report.points:
        assert point.recall.mean == pytest.approx(report.curve[point.nprobe - 1].recall.mean, abs=0.05)
        assert 0 < point.warm_latency.p50_s <= point.warm_latency.p95_s <= point.warm_latency.p99_s
        assert min(point.cold_queries_per_s, point.warm_queries_per_s) > 0
    assert report.stored_nprobe is None
    assert database.view().snapshot.number == report.snapshot, "nothing was written"
    kept = orjson.loads((tmp_path / "report.json").read_bytes())
    assert len(kept["curve"]) == 8
    assert kept["environment"]["torch"]


def test_own_documents_used_as_queries_are_hidden_completely(database: Database) -> None:
    view = database.view()
    queries = held_out_queries(view, "default", None, seed=1)
    assert 1 <= len(queries.masked) <= 6
    assert set(queries.groups.tolist()) == set(queries.masked.tolist())
    assert np.bincount(np.searchsorted(queries.masked, queries.groups)).max() <= 4
    again = held_out_queries(view, "default", None, seed=1)
    np.testing.assert_array_equal(queries.vectors, again.vectors)
    assert len(held_out_queries(view, "default", "self", seed=1, limit=5).vectors) <= 5


@pytest.mark.parametrize("is_scratch", [False, True])
def test_true_neighbours_are_never_in_hidden_documents(database: Database, tmp_path: Path, is_scratch: bool) -> None:
    view = database.view()
    storage = LocalStorage(Path(view.storage.url))
    held_out = held_out_queries(view, "default", None, seed=1)
    (tmp_path / "scratch").mkdir()
    context = Context(ScratchStorage.create(tmp_path / "scratch", storage) if is_scratch else storage)
    before = [path for path in tmp_path.rglob("*") if path.is_file()]
    truth, sizes = true_neighbours(context, view, "default", held_out, 5, 8)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == before
    blocks = [block for part in live_parts(view, "default", kinds=("document",)) for block in part.blocks()]
    hidden = [replace(block, allowed_N=~np.isin(block.keys["document"], held_out.masked)) for block in blocks]
    ids, distances = exact_topk(held_out.vectors, hidden, 5, "inner_product")
    np.testing.assert_array_equal(truth.ids_QK, ids)
    np.testing.assert_array_equal(truth.distances_QK, distances)
    assert not np.isin(view.chunks.document_ids(truth.ids_QK.ravel()), held_out.masked).any()
    [part] = live_parts(view, "default")
    np.testing.assert_array_equal(truth.lists_QK, part.part.lists_N.whole()[part.rows_of(ids)])
    np.testing.assert_array_equal(sizes, np.bincount(part.part.lists_N.whole(), minlength=8))


def test_a_target_stores_the_fewest_lists_that_reach_it(database: Database) -> None:
    assert stored_point(database.view(), "default", None) is None
    high = database.bench_recall(k=3, target_recall=0.99)
    low = database.bench_recall(k=3, target_recall=0.6)
    assert low.stored_nprobe < high.stored_nprobe
    view = database.view()
    assert stored_point(view, "default", None).nprobe == low.stored_nprobe, "the last one is what commands use"
    assert stored_point(view, "default", 0.6).nprobe == low.stored_nprobe
    assert stored_point(view, "default", 0.9).nprobe == high.stored_nprobe
    assert stored_point(view, "default", 0.99) == OperatingPoint(high.stored_nprobe, pytest.approx(1, abs=0.01))
    assert stored_point(view, "default", 0.999) is None
    number = view.snapshot.number
    database.bench_recall(k=3, target_recall=0.6)
    assert database.view().snapshot.number == number, "what is stored already is no commit"
    database.index(factory="IVF4,SQ8", retrain=True)
    assert stored_point(database.view(), "default", None) is None, "another codebook, other lists"


def test_queries_come_from_files_and_query_sets(database: Database, tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "texts.jsonl", {"a": made_text(100, 60), "b": made_text(101, 60)})
    assert database.bench_recall(queries=str(texts)).num_queries == 2
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).standard_normal((7, 32)).astype(np.float32))
    assert database.bench_recall(queries=str(tmp_path / "vectors.npy"), k=5).num_queries == 7
    database.add_queries("mine", [texts])
    with pytest.raises(MissingStep, match="retrodb embed"):
        database.bench_recall(queries="mine")
    database.embed()
    report = database.bench_recall(queries="mine")
    assert report.queries == "query set mine"


def test_an_exact_index_has_recall_1(make_database: Make) -> None:
    database = make_database({str(i): made_text(i, 200) for i in range(10)})
    database.embed()
    database.index()
    report = database.bench_recall(target_recall=1.0)
    assert [(point.nprobe, point.recall.mean) for point in report.points] == [(1, 1.0)]
    assert report.stored_nprobe == 1


def test_invalid_measurements_are_refused(make_database: Make, database: Database, tmp_path: Path) -> None:
    other = make_database({"a": made_text(1, 200)}, "other")
    with pytest.raises(MissingStep, match="retrodb embed"):
        other.bench_recall()
    other.embed()
    other.index()
    with pytest.raises(MissingStep, match="held out"):
        other.bench_recall()
    for match, options in [
        ("k of 0", {"k": 0}),
        ("recall of 0", {"target_recall": 0.0}),
        ("no query set", {"queries": "none"}),
        ("is no kind of report", {"report": tmp_path / "report.pdf"}),
    ]:
        with pytest.raises(UsageError, match=match):
            database.bench_recall(**options)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="not an array"):
        database.bench_recall(queries=str(tmp_path / "bad.npy"))


def test_a_target_that_not_even_all_lists_reach_is_not_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(*arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        ids, distances = search(*arguments, **options)
        distances[:, -1], ids[:, -1] = np.inf, -1
        return ids, distances

    monkeypatch.setattr("retrodb.bench.recall.search", lossy)
    number = database.view().snapshot.number
    with pytest.raises(ConfigError, match=r"all 8 lists give 0\.5"):
        database.bench_recall(target_recall=0.9, k=2)
    assert database.view().snapshot.number == number


def test_the_page_loads_nothing_and_shows_two_charts(database: Database, tmp_path: Path) -> None:
    database.bench_recall(report=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page
    assert "src=" not in page
    assert "IVF8,SQ8" in page
    writer_of(tmp_path / "report.png")(database.bench_recall(), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_reports_with_charts_are_refused_without_matplotlib_before_anything_is_measured(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("retrodb.bench.recall.held_out_queries", None)
    for name in ("report.html", "report.png"):
        with pytest.raises(MissingDependency, match=r"retrodb\[plots\]"):
            database.bench_recall(report=tmp_path / name)
    assert not list(tmp_path.glob("report.*"))
