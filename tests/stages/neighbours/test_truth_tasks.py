"""An exact scan in tasks finds what one product over all parts finds, whatever a task reads, and no task reads the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.truth import Truth
from retrodb.config import NeighboursParams
from retrodb.engine.local import LocalEngine
from retrodb.engine.run import Run
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import missing_rows, parts_of
from retrodb.stages.neighbours import truth_tasks as scan
from retrodb.stages.neighbours.table_inputs import each_part, exclusion_of
from retrodb.stages.neighbours.table_rows import query_ids, spans_of
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.store.verify import VerifiedFiles
from retrodb.view.view import SELF, View

RUN = "0" * 32
EVERY_EXCLUSION = ("document", "content", "cluster")


def documents_of(first: int, count: int) -> dict[str, str]:
    """Documents of several chunks. Every third one has a text that others have too, so that distances are tied."""
    return {str(i): made_text(i % 3 and i, 60 + 300 * (i % 4)) for i in range(first, first + count)}


@pytest.fixture(scope="module", params=[True, False], ids=["vectors", "codes"])
def uneven(tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path, request: pytest.FixtureRequest) -> View:
    """Shards of several sizes: merged parts, deleted and unscreened documents, clusters, and vectors that are not indexed."""
    folder = tmp_path_factory.mktemp("uneven")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RETRODB_CACHE_DIR", str(folder / "cache"))
        database = retrodb.create(folder / "db", tokenizer=str(made_tokenizer), encoder="hashing:32")
        for number in range(10):
            texts = write_documents(folder / f"{number}.jsonl", documents_of(100 * number, 2 + number % 4))
            database.ingest([texts], source=f"s{number}")
            if number == 7:
                if request.param:
                    database.embed()
                    database.index(factory="IVF4,SQ8")
                else:
                    database.embed(keep_vectors=False, factory="IVF4,SQ8")
        database.near_duplicates()
        database.dedup([write_documents(folder / "test.jsonl", {"t": made_text("test", 40)})])
        database.embed()
        database.index()
        database.filter(doc_ids=["101", "300", "701"], reason="unwanted")
        database.ingest([write_documents(folder / "late.jsonl", documents_of(2000, 3))], source="late")
        database.embed()
        view = database.view()
    parts, spans = parts_of(view, "default"), [record.span for record in view.chunks.ranges]
    assert len(parts) < len(spans) - 1, "some parts are merged"
    assert view.snapshot.existing(IndexEntry, "default").lists == 4
    assert not all(view.chunks.is_all_live(*span) for span in spans)
    assert any(missing_rows(view, "default")) == request.param
    return view


def sampled(view: View, params: NeighboursParams, number: int = 60) -> tuple[Int64Array, Exclusion]:
    """Some rows of the database's own query set, and what they exclude."""
    rows = np.concatenate([query_ids(view, SELF, "default", span) for span in spans_of(view, SELF)])
    rows = rows[:: max(1, len(rows) // number)]
    return rows, exclusion_of(view, SELF, params, rows)


def one_product(view: View, params: NeighboursParams, k: int) -> Truth:
    """The definition: one product over all parts."""
    rows, exclusion = sampled(view, params)
    parts = list(each_part(view, "default", params))
    blocks = (block for part in parts for block in part.blocks())
    metric = view.snapshot.existing(SpaceEntry, "default").metric
    ids, distances = exact_topk(view.vectors("default", rows), blocks, k, metric, exclusion)
    lists = np.full(ids.shape, -1, dtype=np.int64)
    for part in parts:
        where = part.rows_of(ids) >= 0
        lists[where] = part.part.lists_N[part.rows_of(ids)[where]]
    return Truth(ids, distances, lists)


def in_tasks(view: View, params: NeighboursParams, k: int, workers: int = 1) -> Truth:
    storage, (rows, exclusion) = view.storage, sampled(view, params)
    queries = scan.publish_queries(storage, RUN, "sample", view.vectors("default", rows), exclusion)
    side = scan.ScannedSide(PlannedSnapshot.of(view), "default", params.where, params.sample, params.seed)
    context = Context(storage, LocalEngine(workers))
    record = scan.find_truth(context, Run(storage, RUN, "test", ""), view, side, queries, k)
    return scan.stored_truth(VerifiedFiles(storage), record)


def assert_equal(scanned: Truth, expected: Truth) -> None:
    np.testing.assert_array_equal(scanned.ids_QK, expected.ids_QK)
    assert scanned.distances_QK.tobytes() == expected.distances_QK.tobytes()
    np.testing.assert_array_equal(scanned.lists_QK, expected.lists_QK)


@pytest.mark.parametrize(
    "params",
    [
        NeighboursParams(exclude=()),
        NeighboursParams(exclude=EVERY_EXCLUSION),
        NeighboursParams(where="num_chunks > 1 and source != 's3'"),
        NeighboursParams(sample=0.5, seed=3, exclude=("content",)),
    ],
    ids=["nothing", "exclusions", "condition", "sample"],
)
def test_a_scan_in_tasks_equals_one_product_over_all_parts(
    uneven: View, params: NeighboursParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = one_product(uneven, params, 7)
    assert len(np.unique(expected.ids_QK)) > 20
    monkeypatch.setattr(scan, "_MIN_RANGE_CHUNKS", 1)
    for most in (1, 7, 30, 1 << 22):
        monkeypatch.setattr(scan, "_TASK_CHUNKS", most)
        assert_equal(in_tasks(uneven, params, 7), expected)
    monkeypatch.setattr(scan, "BLOCK_ROWS", 5)
    assert_equal(in_tasks(uneven, params, 5000), one_product(uneven, params, 5000))


def test_the_number_of_processes_changes_no_byte(uneven: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_MIN_RANGE_CHUNKS", 1)
    monkeypatch.setattr(scan, "_TASK_CHUNKS", 20)
    params = NeighboursParams(exclude=EVERY_EXCLUSION)
    assert_equal(in_tasks(uneven, params, 4, workers=2), one_product(uneven, params, 4))
