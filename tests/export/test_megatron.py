"""The megatron export through megatron-core's own data sets, told only what a trainer is told: every token is compared."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrodb.config import ExportParams
from retrodb.database import Database
from retrodb.errors import MismatchError, UsageError
from retrodb.export.megatron_samples import _batch_sizes, _fixed_evaluation

from .conftest import K, Truth, live_ids, remove
from .peers import Reader, needs_megatron

pytest.importorskip("h5py")
TABLES = {"train": "self", "valid": "exam"}


class Project:
    """A project as a training run reads it."""

    def __init__(self, out: Path, k: int = K) -> None:
        self.config = json.loads((out / "config.json").read_bytes())
        self.k = k
        self.reader = Reader(
            "train_megatron.py", first={"project": str(out), "split": self.config["retro_gpt_split"], "k": k}
        )
        self.samples = self.reader.ask("counts")["samples"]

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    def check(self, subset: str, truth: Truth) -> Counter[tuple[int, ...]]:
        """Compares every chunk of every sample, with its neighbours, with the rows of a table; counts the rows' tokens."""
        end, length = self.config["retro_gpt_eod_token"], self.config["retro_gpt_seq_length"]
        queries = truth.table.view.query_set(truth.table.query_set)
        rows: dict[tuple[int, ...], list[object]] = {}
        for row in range(queries.end):
            rows.setdefault(tuple(padded(truth.row_tokens(row), end)), []).append(
                neighbours_of(truth, row, self.k, end)
            )
        seen: Counter[tuple[int, ...]] = Counter()
        for number in range(self.samples[subset]):
            sample = self.reader.ask([subset, number])
            assert len(sample["text"]) == length + 1
            assert len(sample["neighbor_tokens"]) == length // 64
            for place, neighbours in enumerate(sample["neighbor_tokens"]):
                own = tuple(sample["text"][64 * place : 64 * (place + 1)])
                assert neighbours in rows[own]
                seen[own] += 1
        return seen


def padded(tokens: list[int], end: int) -> list[int]:
    return tokens + [end] * (64 - len(tokens))


def neighbours_of(truth: Truth, row: int, k: int, end: int) -> list[list[int]]:
    """What a reader of k neighbours finds for a row: padding where the table has none."""
    pairs = [*truth.neighbours(row), *[([], [])] * k][:k]
    return [padded(near, end) + padded(following, end) for near, following in pairs]


def index_of(num_documents: int, num_tokens: int) -> bytes:
    """The index of a training set of Megatron: uint16 documents of equal lengths."""
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, num_documents, num_documents + 1)
    number = np.arange(num_documents + 1)
    columns = np.full(num_documents, num_tokens, np.int32), 2 * num_tokens * number[:-1], number
    return head + b"".join(column.tobytes() for column in columns)


@needs_megatron
def test_a_trainer_reads_train_and_valid_of_one_project(exportable: Database, tmp_path: Path) -> None:
    options = {"seq_length": 128}
    result = exportable.export(tmp_path / "out", to="megatron", table=TABLES, **options)
    with Project(tmp_path / "out") as project:
        assert {counts.subset: counts.num_samples for counts in result.subsets} == {
            name: count for name, count in project.samples.items() if name != "test"
        }
        assert project.samples["test"] == 0
        for subset, table in TABLES.items():
            truth = Truth(exportable.neighbour_table(table))
            seen = project.check(subset, truth)
            queries = truth.table.view.query_set(truth.table.query_set)
            num_rows = int(queries.live_mask(0, queries.end).sum())
            assert sum(seen.values()) == 2 * ((64 * num_rows - 1) // 128)


@needs_megatron
@pytest.mark.parametrize("batch", [1, 2])
def test_the_samples_are_those_that_the_trainer_asks_for(exportable: Database, tmp_path: Path, batch: int) -> None:
    """Train, valid and test over several epochs, with the evaluation options of the training run."""
    tables = {"train": "self", "valid": "exam", "test": "exam"}
    options = {"seq_length": 64, "global_batch_size": batch, "eval_interval": 5, "eval_iters": 4}
    result = exportable.export(tmp_path / "out", to="megatron", table=tables, **options)
    with Project(tmp_path / "out") as project:
        assert {counts.subset: counts.num_samples for counts in result.subsets} == project.samples
        assert project.samples["test"] == 4 * batch
        assert project.samples["valid"] == (project.samples["train"] // batch // 5 + 1) * 4 * batch
        for subset, table in tables.items():
            project.check(subset, Truth(exportable.neighbour_table(table)))


@needs_megatron
def test_a_running_trainer_agrees_with_the_database_before_and_after_a_refresh(
    make_exportable: Callable[[], Database], source_texts: dict[str, str], tmp_path: Path
) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="megatron", seq_length=64)
    with Project(out) as project:
        project.check("train", Truth(database.neighbour_table()))
        chunks = database.view().chunks
        content = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        before = live_ids(database)

        remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
        remove(database, tmp_path, {"third": source_texts["129-1"][-100:]}, "chunk")
        removed = [i for i in before if i not in live_ids(database)]
        assert len(removed) >= 3, "a document, and a chunk that was a continuation"
        result = database.refresh_export(out)

        seen = project.check("train", Truth(database.neighbour_table()))
        tokens = chunks.gather_tokens(np.array(removed))
        end = project.config["retro_gpt_eod_token"]
        for row, length in zip(tokens.tokens.tolist(), tokens.lengths.tolist(), strict=True):
            assert not seen[tuple(padded(row[:length], end))]
        assert seen[(end,) * 64]
    assert result.must_reopen == ()
    changed = {str(path.relative_to(out)) for path, data in content.items() if path.read_bytes() != data}
    assert changed - {"retrodb.json", "retrodb-state.json"} == set(result.changed)
    assert {path.split("/")[0] for path in result.changed} == {"data", "query"}
    assert result.num_unchanged_files >= 5


@needs_megatron
def test_a_refresh_of_a_project_brings_every_subset_up_to_date(
    make_exportable: Callable[[], Database], source_texts: dict[str, str], tmp_path: Path
) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="megatron", table=TABLES, seq_length=64)
    remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
    result = database.refresh_export(out)
    assert result.table == "train=self valid=exam"
    assert {path.split("/")[1].split("-")[0] for path in result.changed if path.startswith("query/")} == {
        "train",
        "valid",
    }
    with Project(out) as project:
        for subset, table in TABLES.items():
            project.check(subset, Truth(database.neighbour_table(table)))
    assert database.refresh_export(out).changed == ()


@needs_megatron
def test_an_export_with_other_positions_has_other_file_names_for_neighbours(
    make_exportable: Callable[[], Database], source_texts: dict[str, str], tmp_path: Path
) -> None:
    """A reader that runs on finds no file, rather than rows that mean something else by now."""
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="megatron")
    before = {folder.name for folder in (out / "query").iterdir()} - {"none"}
    remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
    database.export(out, to="megatron")
    assert not before & {folder.name for folder in (out / "query").iterdir()}


@needs_megatron
def test_tables_and_options_that_no_trainer_can_use_are_refused(exportable: Database, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="needs a table of train"):
        exportable.export(out, to="megatron", table={"valid": "exam"})
    with pytest.raises(UsageError, match="unknown subset 'dev'"):
        exportable.export(out, to="megatron", table={"train": "self", "dev": "exam"})
    with pytest.raises(UsageError, match="holds one table"):
        exportable.export(out, to="arrays", table=TABLES)
    with pytest.raises(UsageError, match="no option --seq-length"):
        exportable.export(out, to="arrays", seq_length=64)
    with pytest.raises(UsageError, match="no whole chunks"):
        exportable.export(out, to="megatron", seq_length=100)
    with pytest.raises(UsageError, match="one more token"):
        exportable.export(out, to="megatron", seq_length=1 << 16)
    with pytest.raises(UsageError, match="a batch of 100000 samples"):
        exportable.export(out, to="megatron", table=TABLES, global_batch_size=100_000)
    assert not out.exists()


def test_fixed_counts_get_evaluation_options_that_give_them() -> None:
    """For all small counts: Megatron asks for exactly what there is, or the counts are refused."""
    num_refused = 0
    for train in (1, 7, 64, 100):
        for test in range(0, 9):
            for valid in range(0, 33):
                counts = {"train": train, "valid": valid, "test": test}
                try:
                    evaluation = _fixed_evaluation(counts, ExportParams())
                except UsageError:
                    rounds = {train // interval + 1 for interval in range(1, train + 2)}
                    assert valid not in {test * round_ for round_ in rounds}
                    num_refused += 1
                    continue
                asked = evaluation.asked(train)
                assert all(not counts[name] or counts[name] == asked[name] for name in asked)
    assert num_refused
    with pytest.raises(UsageError, match="Megatron asks for 6 with"):
        _fixed_evaluation({"train": 10, "valid": 7, "test": 0}, ExportParams(global_batch_size=2))
    assert [_batch_sizes(0, n)[0] for n in (0, 1, 3, 300)] == [1, 1, 2, 256]


@needs_megatron
def test_sets_of_a_training_set_of_megatron_are_a_project_with_the_paths_of_its_data(
    make_exportable: Callable[[], Database], tmp_path: Path
) -> None:
    database = make_exportable()
    prefixes: list[str] = []
    for name in ("one", "two"):
        prefix = tmp_path / "sets" / name
        prefix.parent.mkdir(exist_ok=True)
        tokens = np.random.default_rng(len(prefixes)).integers(1, 300, (20, 150)).astype(np.uint16)
        prefix.with_suffix(".bin").write_bytes(tokens.tobytes())
        prefix.with_suffix(".idx").write_bytes(index_of(20, 150))
        prefixes.append(str(prefix))
    blend = f"0.25 {prefixes[0]} 0.75 {prefixes[1]}"
    shared = {"blend": blend, "seq_length": 128, "split": "60,20,20"}
    for subset, samples in (("train", 12), ("valid", 8), ("test", 4)):
        database.add_packed_queries(f"mega-{subset}", **shared, train_samples=samples, subset=subset)
    database.embed()
    for subset in ("train", "valid", "test"):
        database.neighbours(queries=f"mega-{subset}", k=3, spare_neighbours=0)
    out = tmp_path / "out"
    tables = {subset: f"mega-{subset}" for subset in ("train", "valid", "test")}
    result = database.export(out, to="megatron", table=tables)
    assert [counts.num_samples for counts in result.subsets] == [12, 8, 4]
    with Project(out) as project:
        assert project.config["retro_gpt_data_path"] == ["0.25", prefixes[0], "0.75", prefixes[1]]
        assert project.samples == {"train": 12, "valid": 8, "test": 4}
        for subset, table in tables.items():
            assert sum(project.check(subset, Truth(database.neighbour_table(table))).values()) == (
                2 * project.samples[subset]
            )
    alone = database.export(tmp_path / "alone", to="megatron", table="mega-train")
    assert [counts.subset for counts in alone.subsets] == ["train"]
    with Project(tmp_path / "alone") as project:
        project.check("train", Truth(database.neighbour_table("mega-train")))
    with pytest.raises(UsageError, match="is the train of its training set, not the valid"):
        database.export(tmp_path / "x", to="megatron", table={"train": "mega-train", "valid": "mega-train"})
    with pytest.raises(MismatchError, match="has no Megatron samples"):
        database.export(tmp_path / "x", to="megatron", table={"train": "mega-train", "valid": "exam"})
    database.add_packed_queries(
        "mega-test", blend=blend, seq_length=64, split="60,20,20", train_samples=4, subset="test"
    )
    database.embed()
    database.neighbours(queries="mega-test", k=3, spare_neighbours=0)
    with pytest.raises(MismatchError, match="differ in seq_length: 128 and 64"):
        database.export(tmp_path / "x", to="megatron", table=tables)
