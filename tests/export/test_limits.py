"""Counts that 32-bit numbers of a format cannot hold are refused, with the number and a remedy, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrodb.config import ExportParams
from retrodb.database import Database
from retrodb.errors import RetroDBError, UsageError
from retrodb.export import export_run, tables
from retrodb.export.export_source import ExportSource, TablePositions
from retrodb.export.formats import FORMATS
from retrodb.export.position_words import WORD
from retrodb.export.positions import ExportPositions, SpanRecord

from .peers import needs_megatron

pytest.importorskip("h5py")


def made_source(database: Database, scratch: Path, *, positions: int, runs: int, longest: int = 1) -> ExportSource:
    """The source of an export with made-up counts, of a shard of 2^33 chunks."""
    record = SpanRecord(0, 0, positions, runs, longest, runs, "made up")
    made = ExportPositions([record], np.empty(0, dtype=WORD))
    return ExportSource(database.neighbour_table(), TablePositions(made, made), ExportParams(), scratch)


@pytest.mark.parametrize("count", [1 << 31, 1 << 33])
@pytest.mark.parametrize(
    ("name", "counts", "message"),
    [
        ("norlund", lambda n: {"positions": 2 * n, "runs": n}, "sequences"),
        ("lucidrains", lambda n: {"positions": n - 1, "runs": 1}, "rows"),
        ("nemo", lambda n: {"positions": n, "runs": 1, "longest": n // 64}, "tokens in a document"),
        pytest.param(
            "megatron",
            lambda n: {"positions": n, "runs": 1, "longest": n // 64},
            "tokens in a document",
            marks=needs_megatron,
        ),
        pytest.param(
            "megatron", lambda n: {"positions": 2 * n, "runs": n}, "documents of the training set", marks=needs_megatron
        ),
    ],
)
def test_what_32_bits_cannot_count_is_refused(
    name: str, counts: Callable[[int], dict[str, int]], message: str, count: int, exportable: Database, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        FORMATS[name].files(made_source(exportable, tmp_path, **counts(count)))
    assert f"{(1 << 31) - 1:,}" in str(error.value)
    assert "--to arrays" in str(error.value)


@pytest.mark.parametrize("name", ["norlund", "nemo", "arrays", "lucidrains"])
def test_the_largest_counts_that_fit_are_planned_in_64_bits(name: str, exportable: Database, tmp_path: Path) -> None:
    """Ranges of files begin and end where they would with Python's integers."""
    num_positions = (1 << 31) - 2 if name == "lucidrains" else 1 << 33
    source = made_source(exportable, tmp_path, positions=num_positions, runs=1, longest=1)
    files = {file.path: file for file in FORMATS[name].files(source)}
    m, k = source.chunk_tokens, source.k
    sizes = {
        "norlund": ("database/chunk2seq.npy", 128 + 4 * num_positions),
        "nemo": ("knn.idx", 41 + 8 * k * (1 + num_positions)),
        "arrays": ("tokens.npy", 128 + 2 * m * num_positions),
        "lucidrains": ("train.chunks.dat", 4 * (m + 1) * (num_positions + 1 + 64)),
    }
    path, size = sizes[name]
    assert files[path].size_bytes == size


@pytest.mark.parametrize(
    "name", ["arrays", "norlund", "nemo", "lucidrains", pytest.param("megatron", marks=needs_megatron)]
)
def test_files_are_described_from_counts_of_shards_alone(name: str, exportable: Database, tmp_path: Path) -> None:
    """There are no words, so that reading a position of the made-up shards would fail."""
    records = [SpanRecord(n << 20, 0, 1000, 10, 100, 40, f"shard {n}") for n in range(1500)]
    made = ExportPositions(records, np.empty(0, dtype=WORD))
    table = exportable.neighbour_table()
    files = FORMATS[name].files(ExportSource(table, TablePositions(made, made), ExportParams(), tmp_path))
    assert sum(len(file.pieces) for file in files) > 1500
    assert sum(file.size_bytes for file in files) > 2 * table.view.settings.chunk_tokens * 1500 * 1000


def test_nothing_is_left_of_a_refused_export(
    exportable: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: export_run.ExportRun) -> None:
        raise UsageError("too many")

    monkeypatch.setattr(export_run.ExportRun, "files", property(refused))
    with pytest.raises(RetroDBError, match="too many"):
        exportable.export(tmp_path / "out", to="arrays")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_strings_are_cut_into_batches_that_32_bit_offsets_can_address(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["ab", None, "cdefg", "h"]
    inverse = np.array([0, 2, 2, 1, 3, 3, 0])
    expected = [values[i] for i in inverse]
    whole = tables.repeated_strings(values, inverse)
    assert (whole.num_chunks, whole.to_pylist(), whole.type) == (1, expected, pa.string())
    monkeypatch.setattr(tables, "_MAX_STRING_BYTES", 8)
    cut = tables.repeated_strings(values, inverse)
    assert cut.to_pylist() == expected
    assert cut.num_chunks > 1
    assert max(sum(len(text or "") for text in chunk.to_pylist()) for chunk in cut.chunks) <= 8
