from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrodb.corpus.document import Document, Fields, FormattedValue, Reject, UnreadableValue
from retrodb.corpus.readers.arrow import read_parquet_records
from retrodb.corpus.readers.arrow_values import json_values
from retrodb.errors import InputError

from .conftest import read_all, rejects
from .mutations import table

INT64 = st.integers(-(2**63), 2**63 - 1)
UNITS = ("s", "ms", "us", "ns")
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@given(
    value=INT64, unit=st.sampled_from(UNITS), zone=st.sampled_from((None, "Europe/Berlin", "+05:30", "Mars/Olympus"))
)
def test_timestamp_is_iso_8601_in_utc_or_out_of_range(value: int, unit: str, zone: str | None) -> None:
    (text,) = json_values(pa.array([value], pa.int64()).view(pa.timestamp(unit, zone)))
    seconds = value // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    if not FIRST.timestamp() <= seconds <= LAST.timestamp():
        assert isinstance(text, UnreadableValue)
        assert str(value) in str(text.content)
    else:
        assert isinstance(text, FormattedValue)
        assert np.datetime64(text.removesuffix("+00:00"), unit).astype(np.int64) == value
        assert text.endswith("+00:00") == (zone is not None)


@given(days=st.integers(-(2**31), 2**31 - 1))
def test_date_is_iso_8601_or_out_of_range(days: int) -> None:
    (text,) = json_values(pa.array([days], pa.int32()).view(pa.date32()))
    if isinstance(text, UnreadableValue):
        assert not -719162 <= days <= 2932896
    else:
        assert date.fromisoformat(str(text)).toordinal() == days + date(1970, 1, 1).toordinal()
    assert json_values(pa.array([days * 86_400_000], pa.int64()).view(pa.date64())) == [text] or isinstance(
        text, UnreadableValue
    )


@given(value=INT64, unit=st.sampled_from(UNITS))
def test_duration_has_its_seconds(value: int, unit: str) -> None:
    (text,) = json_values(pa.array([value], pa.int64()).view(pa.duration(unit)))
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    assert _duration_in(str(text), per_second) == value


def _duration_in(text: str, per_second: int) -> int:
    """A duration in units of 1 / per_second."""
    sign, text = (-1, text[1:]) if text[0] == "-" else (1, text)
    days, _, time = text.removeprefix("P").partition("T")
    total, number = int(days.removesuffix("D") or 0) * 86_400 * per_second, ""
    for character in time:
        if character in "HMS":
            whole, _, fraction = number.partition(".")
            total += int(whole) * {"H": 3600, "M": 60, "S": 1}[character] * per_second
            total += int(fraction.ljust(9, "0")) * per_second // 10**9 if fraction else 0
            number = ""
        else:
            number += character
    return sign * total


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (
            pa.array([0, 86_399_999_999_999, -1, 86_400_000_000_000], pa.time64("ns")),
            ["00:00:00", "23:59:59.999999999"],
        ),
        (pa.array([1, 1500], pa.time32("ms")), ["00:00:00.001000", "00:00:01.500000"]),
        (pa.array([0, 90_061_500], pa.duration("ms")), ["PT0S", "P1DT1H1M1.5S"]),
        (pa.array([(1, -2, 3)], pa.month_day_nano_interval()), ["P1M-2DT0.000000003S"]),
        (pa.array([b"ok", b"\xff", None]), [b"ok", b"\xff", None]),
        (pa.array(["1.50", "-0.25"]).cast(pa.decimal128(9, 2)), ["1.50", "-0.25"]),
        (pa.array([1.5, None], pa.float16()), [1.5, None]),
        (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())), [[["k", 1]], None]),
        (pa.array([{"a": [None, "x"]}, None]), [{"a": [None, "x"]}, None]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.array([[1], [], None], pa.list_view(pa.int8())), [[1], [], None]),
        (pa.RunEndEncodedArray.from_arrays([2, 3], ["x", "y"]), ["x", "x", "y"]),
        (
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(range(16))], pa.binary(16))),
            ["00010203-0405-0607-0809-0a0b0c0d0e0f"],
        ),
        (pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["x", "y"])]), [1, "y"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_arrow_type_has_a_json_form(array: pa.Array, expected: list[object]) -> None:
    values = json_values(array)
    assert values[: len(expected)] == expected
    assert all(isinstance(value, UnreadableValue) for value in values[len(expected) :])  # times outside of a day
    assert json_values(array[1:]) == values[1:]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_bad_value_refuses_its_record_and_names_the_field(tmp_path: Path, depth: int) -> None:
    far = pa.array([0, 253_402_300_800, None]).cast(pa.timestamp("s"))
    for _ in range(depth):
        far = pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1, 2, 3], far)], ["k"])
    pq.write_table(pa.table({"text": ["a", "b", "c"], "when": far}), tmp_path / "a.parquet")
    records = read_all(tmp_path / "a.parquet")
    assert rejects(records) == [("record 1, field when", "value-out-of-range")]
    assert "253402300800" in records[1].excerpt if isinstance(records[1], Reject) else False
    assert len(read_all(tmp_path / "a.parquet", fields=Fields(metadata=()))) == 3
    assert not rejects(read_all(tmp_path / "a.parquet", fields=Fields(drop_metadata=True)))
    with pytest.raises(InputError, match="row 2, column when: value-out-of-range"):
        list(read_parquet_records(str(tmp_path / "a.parquet")))


def test_int96_after_2262_is_the_date_that_was_written(tmp_path: Path) -> None:
    when = pa.array([datetime(9999, 12, 31), datetime(1, 1, 1)], pa.timestamp("us"))
    columns = pa.table({"text": ["a", "b"], "when": when})
    pq.write_table(columns, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    metadata = [json.loads(r.metadata) for r in read_all(tmp_path / "a.parquet") if isinstance(r, Document)]
    assert metadata == [{"when": "9999-12-31T00:00:00"}, {"when": "0001-01-01T00:00:00"}]


def test_binary_metadata_is_text_or_base64(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "bin": [b"caf\xc3\xa9", b"\xff\0"]}), tmp_path / "a.parquet")
    metadata = [json.loads(r.metadata) for r in read_all(tmp_path / "a.parquet") if isinstance(r, Document)]
    assert metadata == [{"bin": "café"}, {"bin": {"base64": "/wA="}}]


def test_date_is_an_id_but_no_text(tmp_path: Path) -> None:
    day = pa.array([date(2024, 2, 29)])
    pq.write_table(pa.table({"id": day, "text": ["a"]}), tmp_path / "a.parquet")
    (document,) = read_all(tmp_path / "a.parquet")
    assert isinstance(document, Document)
    assert document.doc_id == "2024-02-29"
    pq.write_table(pa.table({"text": day}), tmp_path / "b.parquet")
    assert rejects(read_all(tmp_path / "b.parquet")) == [("record 0", "text-not-a-string")]


def test_metadata_does_not_depend_on_pandas(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    here = [r.metadata for r in read_all(tmp_path / "a.parquet") if isinstance(r, Document)]
    program = f"""
import sys
sys.modules["pandas"] = None
from retrodb.corpus.document import Fields, Limits
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.readers import read_split
for split in plan_splits(expand_inputs([{str(tmp_path / "a.parquet")!r}]), 1 << 30):
    for record in read_split(split, Fields(), Limits()):
        sys.stdout.buffer.write(record.metadata + b"\\n")
"""
    without = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert without.splitlines() == here
    assert len(here) == 12
    assert json.loads(here[0])["at"] == "2024-02-29T12:30:00+00:00"
