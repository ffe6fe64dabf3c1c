"""A table has the same bytes whether its join is split by ranges of lists or not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_text, write_documents

import retrodb
from retrodb.ann.exclusion import Exclusion
from retrodb.config import NeighboursParams
from retrodb.database import Database
from retrodb.errors import NotEnoughMemory
from retrodb.format.parquet import write_table
from retrodb.format.records import ChunkRange
from retrodb.format.rows import RowSet
from retrodb.maintain.purge.matching import row_values
from retrodb.maintain.purge.scanner import TraceScanner
from retrodb.maintain.purge.traces import Traces
from retrodb.stages.neighbours import join_memory, range_join, range_scan
from retrodb.stages.neighbours.query_rows import QueryRows
from retrodb.stages.neighbours.range_join import range_bounds, span_groups
from retrodb.stages.neighbours.table_rows import TableRows, publish_row_blocks, publish_rows, spans_of
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles

FACTORY = "IVF16,SQ8"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path) -> Path:
    return make_large(tmp_path_factory.mktemp("large"), made_tokenizer)


def make_large(folder: Path, made_tokenizer: Path) -> Path:
    """Several shards and parts, equal texts, one document with many chunks, deleted documents."""
    db = retrodb.create(folder / "db", tokenizer=str(made_tokenizer), encoder="hashing:32")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("shard", "tokenize"):
            patch.setattr(f"retrodb.stages.ingest.{module}.MAX_SHARD_CHUNKS", 256)
        patch.setattr("retrodb.stages.index.merge.choose_merges", lambda sizes: [])
        first = {f"d{i}": made_text(i % 37, 40 + 60 * (i % 9)) for i in range(150)}
        first["long"] = made_text("long", 3000)
        db.ingest([write_documents(folder / "first.jsonl", first)], source="first")
        db.embed()
        db.index(factory=FACTORY)
        db.ingest(
            [write_documents(folder / "second.jsonl", {f"e{i}": made_text(i, 300) for i in range(20)})], source="second"
        )
        db.embed()
        db.index()
    db.filter(doc_ids=["d3", "e5"], reason="gone")
    return folder


def copy(folder: Path, name: str) -> Database:
    shutil.copytree(folder / "db", folder / name)
    return retrodb.open(folder / name)


def contents(db: Database, table: str = "self") -> list[tuple[int, bytes]]:
    """The bytes of the files of a table, by kind and by the first row of each."""
    view = db.view()
    files = VerifiedFiles(view.storage)
    records = [record for kind in ("neighbours", "naming") for record in view.manifest.files(kind, table)]
    records.sort(key=lambda record: (record.kind, record.first_chunk))
    return [(record.first_chunk, files.open(record).read_bytes()) for record in records]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop over blocks has several of them."""
    monkeypatch.setattr("retrodb.stages.neighbours.exchange.GROUP_ROWS", 16)
    monkeypatch.setattr("retrodb.stages.neighbours.range_payloads.EXCHANGED_ROWS", 50)
    monkeypatch.setattr(range_scan, "EXCHANGED_ROWS", 50)
    monkeypatch.setattr("retrodb.stages.neighbours.range_results.SORTED_ROWS", 70)
    monkeypatch.setattr(range_join, "_GROUP_ROWS", 64)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "equal contents excluded": {"exclude": ("document", "content")},
    "nothing excluded": {"exclude": ()},
    "few documents": {"where": "doc_id in ('d1', 'd7', 'e2')"},
    "one document": {"where": "doc_id = 'd1'"},
    "none": {"where": "doc_id = 'nobody'"},
    "a sample": {"sample": 0.3},
    "many neighbours": {"k": 30, "spare_neighbours": 20, "recall": 0.5},
    "low recall": {"recall": 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.usefixtures("small_blocks")
def test_ranges_and_links_of_equal_rows_change_no_byte_of_a_table(
    large: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = copy(large, f"{name}-1")
    whole = expected.neighbours(list_ranges=1, **OPTIONS[name])
    monkeypatch.setattr("retrodb.ann.list_rows.LEAST_LINKED", 1)
    for ranges in (2, 100) if name == "plain" else (6,):
        db = copy(large, f"{name}-{ranges}")
        result = db.neighbours(list_ranges=ranges, **OPTIONS[name])
        assert result.nprobe > 0
        assert contents(db) == contents(expected)
        assert (result.num_rows, result.num_short, result.recall_reached) == (
            whole.num_rows,
            whole.num_short,
            whole.recall_reached,
        )
        assert (1 if result.nprobe == 1 else 1.01) <= result.ranges_per_row <= min(ranges, 16)
        assert not list((large / f"{name}-{ranges}" / "runs").rglob("join/*"))


def test_ranges_declare_what_they_read(tmp_path: Path, made_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.format.blocks.BLOCK_BYTES", 512)  # most arrays have several blocks
    folder = make_large(tmp_path, made_tokenizer)
    tables = []
    for ranges in (1, 6):
        db = copy(folder, str(ranges))  # of whose files nothing is verified
        db.neighbours(list_ranges=ranges)
        tables.append(contents(db))
    assert tables[0] == tables[1]


def test_a_query_set_is_joined_by_ranges_too(large: Path) -> None:
    tables = []
    for ranges in (1, 5):
        db = copy(large, f"queries-{ranges}")
        path = write_documents(large / "queries.jsonl", {f"q{i}": made_text(f"q{i}", 90) for i in range(30)})
        db.add_queries("asked", [path])
        db.embed()
        db.neighbours(queries="asked", list_ranges=ranges)
        tables.append(contents(db, "asked"))
    assert tables[0] == tables[1]


def test_workers_change_no_byte(large: Path) -> None:
    expected = copy(large, "workers-1")
    expected.neighbours(list_ranges=1)
    shutil.copytree(large / "db", large / "workers-2")
    retrodb.open(large / "workers-2", workers=2).neighbours(list_ranges=4)
    assert contents(retrodb.open(large / "workers-2")) == contents(expected)


def test_a_join_that_does_not_fit_is_split(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = copy(large, "fits")
    assert expected.neighbours().exchanged_bytes == 0
    db = copy(large, "does-not-fit")
    monkeypatch.setattr(join_memory.JoinSize, "least_bytes", 1 << 60)
    result = db.neighbours()
    assert result.exchanged_bytes > 0
    assert contents(db) == contents(expected)
    monkeypatch.setattr(join_memory, "_PROCESS_MIB", 1 << 40)
    with pytest.raises(NotEnoughMemory, match="where each row probes"):
        copy(large, "never-fits").neighbours()


@pytest.mark.parametrize("num_rows", [0, 1, 4096, 10_001])
def test_blocks_change_no_byte_of_a_file(tmp_path: Path, num_rows: int) -> None:
    random = np.random.default_rng(num_rows)
    rows = np.sort(random.permutation(12_000)[:num_rows]) + 5
    ids, distances = random.integers(0, 99, (num_rows, 3)), random.random((num_rows, 3)).astype(np.float32)
    storage, span = LocalStorage(tmp_path), ChunkRange(5, 12_000)
    row_set = RowSet.from_present(rows - 5, 12_000)
    whole = publish_rows(storage, "t", "a" * 32, span, rows, ids, distances)
    for size in (1, 1000, 4096, 5000):
        if size > 1 or num_rows < 5000:
            cuts = [slice(start, start + size) for start in range(0, num_rows, size)]
            blocks = [TableRows(rows[cut], ids[cut], distances[cut]) for cut in cuts]
            records = publish_row_blocks(storage, "t", f"{size:032x}", span, row_set, 3, blocks)
            for record, expected in zip(records, whole, strict=True):
                assert (record.digest.sha256, record.rows) == (expected.digest.sha256, expected.rows)


def test_an_interrupted_join_continues_to_the_same_bytes(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = copy(large, "killed-1")
    expected.neighbours(list_ranges=1)
    db = copy(large, "killed-2")
    for function in ("run_home_task", "run_remote_task", "run_collect_task", "run_rows_task"):
        done: list[int] = []
        run = getattr(range_join, function)

        def killed(*args: Any, run: Any = run, done: list[int] = done, **options: Any) -> Any:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(1)
            return run(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(range_join, function, killed)
            with pytest.raises(KeyboardInterrupt):
                db.neighbours(list_ranges=3)
    db.neighbours(list_ranges=3)
    assert contents(db) == contents(expected)


def test_a_purge_leaves_no_vector_in_the_files_of_an_interrupted_join(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, folder = copy(large, "purged"), large / "purged"

    def killed(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(range_join, "run_collect_task", killed)
        with pytest.raises(KeyboardInterrupt):
            db.neighbours(list_ranges=3)
    view = db.view()
    [document] = [row for row in view.chunks.documents(np.arange(view.chunks.end)) if row and row["doc_id"] == "long"][
        :1
    ]
    vector = view.vectors("default", np.array([document["first_chunk"]]))[0].tobytes()
    assert any(vector in path.read_bytes() for path in folder.rglob("join/*/*.parquet"))
    db.purge(["long"])
    assert [path for path in folder.rglob("*") if path.is_file() and vector in path.read_bytes()] == []


@pytest.mark.parametrize("dim", [3, 8, 384])
def test_a_purge_searches_vectors_of_any_dimension_as_vectors(tmp_path: Path, dim: int) -> None:
    """Vectors of 8 dimensions have 16 bytes, as hashes of texts do."""
    vectors = np.arange(4 * dim, dtype=np.float16).reshape(4, dim)
    rows = QueryRows(np.arange(4), vectors, np.zeros((4, 1), np.int32), Exclusion.of(4))
    write_table(
        tmp_path / "rows.parquet", rows.to_table().select(["vector"]).slice(1)
    )  # columns may begin inside their buffers
    compared: list[tuple[str, list[int]]] = []
    traces = SimpleNamespace(
        contains=lambda kind, values: compared.append((kind, values.tolist())) or np.zeros(len(values), bool)
    )
    TraceScanner(cast(Traces, traces), lambda *found: None).scan("runs/rows.parquet", tmp_path / "rows.parquet")
    assert compared == [("vector", row_values(vectors[1:]).tolist())]
    assert (QueryRows.of_table(rows.to_table().slice(2), dim).vectors_QD == vectors[2:]).all()


def test_ranges_that_do_not_fit_are_refused(large: Path) -> None:
    db = copy(large, "refused")
    size = join_memory.JoinSize.of(
        db.view(), "default", NeighboursParams(), spans_of(db.view(), "self"), nprobe=4, threads=1, device="cpu"
    )
    for ranges in (1, 3):
        with pytest.raises(NotEnoughMemory, match="where each row probes"):
            size.check(1 << 20, ranges)
        size.check(1 << 40, ranges)
    db = retrodb.open(large / "refused", memory_bytes=400 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join_memory.JoinSize, "least_bytes", 1 << 60)
        with pytest.raises(NotEnoughMemory, match="where each row probes"):
            db.neighbours(list_ranges=1)
        assert db.neighbours().exchanged_bytes > 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_bounds_of_ranges_cover_all_lists_and_no_range_is_empty(sizes: list[int], num_ranges: int) -> None:
    bounds = range_bounds(np.array(sizes, dtype=np.int64), num_ranges)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    assert (np.diff(bounds) > 0).all()
    assert len(bounds) - 1 <= num_ranges


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=60), st.integers(1, 4))
def test_groups_of_spans_are_few_and_have_every_span_once(sizes: list[int], num_ranges: int) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    spans = [ChunkRange(start, size) for start, size in zip(starts, sizes, strict=False)]
    groups = span_groups(spans, num_ranges)
    assert [number for group in groups for number in group] == list(range(len(spans)))
    assert len(groups) <= 2 * range_join._MOST_GROUPS


def test_the_number_of_ranges_follows_from_the_size_and_the_memory_limit() -> None:
    size = join_memory.JoinSize(
        dim=384, num_lists=4096, nprobe=64, width=18, num_kinds=0, database_rows=4_000_000, largest_part=2_000_000,
        task_rows=1 << 20, threads=2,
    )  # fmt: skip
    assert size.num_ranges(4 << 30) == 1
    small = size.num_ranges(size.least_bytes - 1)
    assert 1 < small < 256
    huge = replace(size, database_rows=15_600_000_000, largest_part=1 << 26, num_lists=1 << 22, nprobe=256)
    assert huge.num_ranges(64 << 30) == 256
    assert replace(size, nprobe=0).num_ranges(1 << 20) == 1
