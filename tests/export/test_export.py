"""What all exports have in common: cards, registration, interruption, bounded memory, and refusals."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_documents import made_text, write_documents
from made_models import write_model

import retrodb
from retrodb.config import EXPORT_FORMATS
from retrodb.database import Database
from retrodb.errors import DamagedFileError, MismatchError, MissingStep, UsageError
from retrodb.export import export_run, folder, positions
from retrodb.export.card import CARD
from retrodb.export.folder import ExportFolder, PieceToWrite
from retrodb.export.formats import FORMATS
from retrodb.export.record import LOG, RECORD, WrittenPiece
from retrodb.format.entries import SpaceEntry
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable

from .conftest import remove
from .peers import needs_megatron

pytest.importorskip("h5py")
every_format = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_megatron] if name == "megatron" else []) for name in EXPORT_FORMATS]
)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_formats_are_those_of_the_command_line() -> None:
    assert tuple(FORMATS) == EXPORT_FORMATS


@every_format
def test_an_interrupted_export_continues_and_ends_in_the_same_bytes(
    name: str, exportable: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exportable.export(tmp_path / "out", to=name)
    number = exportable.view().snapshot.number
    whole = content(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "before")
    written: list[tuple[str, str, int]] = []

    def failing(self: ExportFolder, run: str, piece: PieceToWrite, result: WrittenPiece) -> None:
        real(self, run, piece, result)
        written.append((self.path.name, piece.file.path, piece.number))
        if len(written) == allowed:
            with (self.path / LOG).open("ab") as log:
                log.write(b'{"path": "torn')  # a kill in the middle of a line
            raise KeyboardInterrupt

    real = ExportFolder._finish_piece
    monkeypatch.setattr(ExportFolder, "_finish_piece", failing)
    allowed = 0
    while not (tmp_path / "out").exists():
        allowed += 1
        try:
            exportable.export(tmp_path / "out", to=name)
        except KeyboardInterrupt:
            assert not (tmp_path / "out").exists(), "no reader sees half of an export"
    assert len(written) == len(set(written)), "no piece is written twice"
    assert not (tmp_path / "out" / LOG).exists()
    assert content(tmp_path / "out") == whole
    assert exportable.view().snapshot.number == number, "it was registered before, as it is"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".partial")] == []


@pytest.mark.parametrize("name", ["arrays", "huggingface", pytest.param("megatron", marks=needs_megatron)])
def test_two_processes_write_the_same_bytes(
    name: str, exportable: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ranges of files, in files that are written from others, and in both."""
    exportable.export(tmp_path / "out", to=name, is_registered=False)
    whole = content(tmp_path / "out")
    monkeypatch.setattr(export_run, "_ONE_PROCESS_BYTES", -1)
    retrodb.open(exportable.path, workers=2).export(tmp_path / "out", to=name, is_registered=False)
    assert content(tmp_path / "out") == whole


@every_format
def test_planning_reads_no_chunk_and_no_row(
    name: str, exportable: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only tasks read shards: outside of them, nothing of a chunk set or a table is asked for."""
    inside: list[bool] = []

    def in_task(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object) -> object:
            inside.append(True)
            try:
                return function(*args)
            finally:
                inside.pop()

        return run

    def only_in_tasks(kind: type, method: str) -> None:
        real = getattr(kind, method)

        def checked(*args: object, **kwargs: object) -> object:
            assert inside, f"{method} is read while the export is planned"
            return real(*args, **kwargs)

        monkeypatch.setattr(kind, method, checked)

    for task in ("run_positions", "run_card_facts", "run_piece"):
        monkeypatch.setattr(export_run, task, in_task(getattr(export_run, task)))
    for method in ("is_live", "document_ids", "layout", "gather_tokens", "texts", "documents", "continuation"):
        if hasattr(ChunkSet, method):
            only_in_tasks(ChunkSet, method)
    for method in ("stored", "rows_in", "rows"):
        only_in_tasks(NeighbourTable, method)
    exportable.export(tmp_path / "out", to=name)
    exportable.refresh_export(tmp_path / "out")
    exportable.export(tmp_path / "dry", to=name, dry_run=True)


@every_format
def test_a_dry_run_reports_the_sizes_and_writes_nothing(name: str, exportable: Database, tmp_path: Path) -> None:
    before = exportable.view().snapshot.number
    planned = exportable.export(tmp_path / "out", to=name, dry_run=True)
    assert not (tmp_path / "out").exists()
    assert exportable.view().snapshot.number == before
    written = exportable.export(tmp_path / "out", to=name)
    assert planned.num_files == written.num_files
    assert planned.num_rows == written.num_rows
    assert planned.size_bytes > 0
    if name in ("arrays", "lucidrains", "norlund", "nemo"):
        assert planned.size_bytes == written.size_bytes


def test_the_card_says_where_an_export_comes_from(exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to="arrays")
    card = json.loads((tmp_path / "out" / "retrodb.json").read_bytes())
    view = exportable.view(card["snapshot"])
    assert card["clock"] == view.snapshot.clock
    assert card["sources"] == {"made": ["CC0-1.0"], "pairs": []}
    assert card["tokenizer"]["sha256"] == view.settings.tokenizer_sha256
    assert card["space"]["fingerprint"] == view.snapshot.existing(SpaceEntry, "default").fingerprint
    assert card["table"]["k"] == exportable.neighbour_table().k
    assert card["rows"] == len(exportable.neighbour_table().rows())


def test_exports_are_listed_once(make_exportable: Callable[[], Database], tmp_path: Path) -> None:
    database = make_exportable()
    number = database.export(tmp_path / "one", to="arrays").snapshot
    database.export(tmp_path / "two", to="dpr", table="exam")
    database.export(tmp_path / "two", to="dpr", table="exam", as_of=number - 1)
    listed = {Path(each.path).name: each for each in database.exports() if str(tmp_path) in each.path}
    assert set(listed) == {"one", "two"}
    assert listed["one"].snapshot == number
    assert (listed["two"].format, listed["two"].table, listed["two"].snapshot) == ("dpr", "exam", number - 1)


def test_memory_does_not_grow_with_the_database(
    make_database: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of 64 chunks, four times the shards take hardly more."""
    monkeypatch.setattr(positions, "BLOCK_CHUNKS", 64)
    peaks = []
    for number, num_shards in enumerate((1, 4)):
        database = make_database({}, name=f"db{number}")
        for shard in range(num_shards):
            texts = {f"{shard}-{i}": made_text(f"{shard}-{i}", 1500) for i in range(20)}
            database.ingest([write_documents(tmp_path / f"{shard}.jsonl", texts)], source=f"s{shard}")
        database.embed()
        database.index()
        database.neighbours()
        database.export(tmp_path / f"warm{number}", to="arrays")
        tracemalloc.start()
        database.export(tmp_path / f"out{number}", to="arrays")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.6 * peaks[0]


def test_an_export_is_replaced_completely_and_nothing_else_is_overwritten(exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to="arrays")
    exportable.export(tmp_path / "out", to="atlas")
    assert not (tmp_path / "out" / "tokens.npy").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="no export"):
        exportable.export(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_unknown_formats_tables_and_folders_are_refused(exportable: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Known are: parquet"):
        exportable.export(tmp_path / "out", to="scroll")
    with pytest.raises(MissingStep, match="There are: exam, self"):
        exportable.export(tmp_path / "out", table="other")
    with pytest.raises(UsageError, match="no export"):
        exportable.refresh_export(tmp_path / "out")


def test_a_refresh_counts_rows_without_a_position(make_exportable: Callable[[], Database], tmp_path: Path) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="arrays")
    database.ingest([write_documents(tmp_path / "more.jsonl", {"new": made_text(999, 200)})], source="more")
    database.embed()
    database.index()
    database.neighbours(k=database.neighbour_table().k, spare_neighbours=2)
    result = database.refresh_export(out)
    rows = database.neighbour_table().rows()
    sources = [document["source"] for document in database.view().chunks.documents(rows)]
    assert result.num_rows_without_position == sources.count("more") > 0
    neighbours = np.load(out / "neighbours.npy")
    assert neighbours.max() < len(np.load(out / "tokens.npy"))
    assert "neighbours.npy" in result.changed
    assert "tokens.npy" not in result.changed


def test_a_refresh_of_a_table_of_another_shape_is_refused(
    make_exportable: Callable[[], Database], tmp_path: Path
) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="norlund")
    database.neighbours(k=4, spare_neighbours=0)
    with pytest.raises(MismatchError, match="'k'"):
        database.refresh_export(out)


@needs_megatron
def test_an_interrupted_refresh_continues(
    make_exportable: Callable[[], Database],
    source_texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="megatron")
    remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
    planned = database.refresh_export(out, dry_run=True)
    before = content(out)
    real = folder.publish_whole

    def failing(temporary: Path, path: Path) -> None:
        if path.suffix == ".hdf5":
            raise KeyboardInterrupt
        real(temporary, path)

    monkeypatch.setattr(folder, "publish_whole", failing)
    with pytest.raises(KeyboardInterrupt):
        database.refresh_export(out)
    monkeypatch.undo()
    result = database.refresh_export(out)
    assert set(result.changed) < set(planned.changed), "the data files were brought up to date before"
    changed = {path for path, data in content(out).items() if before.get(path) != data}
    assert changed - {"retrodb.json", RECORD} == set(planned.changed)
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format": 1}'])
@pytest.mark.parametrize("name", [CARD, RECORD])
def test_a_refresh_names_a_damaged_file(name: str, content: bytes, exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to="atlas", is_registered=False)
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=name):
        exportable.refresh_export(tmp_path / "out")


@pytest.mark.parametrize(("metric", "name"), [("inner_product", "similarity"), ("squared_l2", "squared_distance")])
def test_how_near_a_neighbour_is_has_one_sign_and_the_name_of_its_metric(
    metric: str, name: str, make_database: Callable[..., Database], tmp_path: Path
) -> None:
    """Every export that says how near a neighbour is gives what a product of the stored vectors gives."""
    database = make_database({str(i): made_text(i, 90) for i in range(12)})
    model = write_model(tmp_path / "model", "bert")  # without conventions of its own: squared_l2
    database.embed(space="measured", encoder="hashing:32" if metric == "inner_product" else str(model))
    database.index(space="measured")
    database.neighbours(space="measured", table="measured", k=3)
    view, table = database.view(), database.neighbour_table("measured")
    rows = table.rows()
    ids, _ = table.read(rows)
    own = view.vectors("measured", rows).astype(np.float64)
    other = np.stack([view.vectors("measured", each).astype(np.float64) for each in ids])
    products, squares = (own[:, None] * other).sum(axis=2), ((own[:, None] - other) ** 2).sum(axis=2)
    expected = products if metric == "inner_product" else squares
    database.export(tmp_path / "parquet", table="measured")
    exported = pq.read_table(tmp_path / "parquet" / "rows").column(name).to_pylist()
    np.testing.assert_allclose(exported, expected, atol=1e-3)
    database.export(tmp_path / "dpr", to="dpr", table="measured")
    [hit] = database.search(view.chunks.texts(rows[:1]), k=1, space="measured")[0]
    [vector] = view.vectors("measured", np.array([hit.chunk_id])).astype(np.float64)
    product, square = float(own[0] @ vector), float(((own[0] - vector) ** 2).sum())
    assert hit.measure == name
    assert hit.score == pytest.approx(product if metric == "inner_product" else square, abs=0.05)
    shown = database.show_neighbours(int(rows[0]), table="measured").neighbours
    assert {neighbour.measure for neighbour in shown} == {table.measure} == {name}
    np.testing.assert_allclose([neighbour.score for neighbour in shown], expected[0], atol=1e-3)
    np.testing.assert_allclose(table.read_scores(rows)[1], expected, atol=1e-3)
    records = json.loads((tmp_path / "dpr" / "train.json").read_bytes())
    by_question = dict(zip(view.chunks.texts(rows), expected, strict=True))
    for record in records:
        np.testing.assert_allclose(
            [context[name] for context in record["ctxs"]], by_question[record["question"]], atol=1e-3
        )
        scores = [context["score"] for context in record["ctxs"]]
        assert scores == sorted(scores, reverse=True)
