"""Parquet files whose strings are larger than Arrow's 32-bit offsets."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from retrodb.format import parquet


def test_strings_beyond_2_gib_are_read_so_that_rows_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered: with the real one `take` and `combine_chunks` of `string` fail."""
    texts = [f"{number:04d}" * 50 for number in range(100)]
    table = pa.table({"large": pa.array(texts), "small": pa.array(["x"] * 100), "number": pa.array(range(100))})
    parquet.write_table(tmp_path / "file.parquet", table, row_group_rows=10)
    assert parquet.read_table(tmp_path / "file.parquet").schema == table.schema
    monkeypatch.setattr(parquet, "MAX_STRING_BYTES", 10_000)
    whole = parquet.read_table(tmp_path / "file.parquet")
    groups = parquet.read_row_groups(tmp_path / "file.parquet", range(10))
    for read in (whole, groups):
        assert read.schema.types == [pa.large_string(), pa.string(), pa.int64()]
        assert read.column("large").to_pylist() == texts
        assert read.take([99]).column("large").to_pylist() == texts[99:]
        assert read.cast(table.schema).equals(table)
