from __future__ import annotations

import json
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrodb.corpus.document import Document, Fields, Reject
from retrodb.corpus.readers.field_names import find_duplicate_field
from retrodb.corpus.readers.jsonl import read_json_objects
from retrodb.corpus.streams import open_decompressed
from retrodb.errors import InputError

from .conftest import read_all, rejects, texts

NAMES = st.sampled_from(["a", "b", 'a"', "\\", "é", "\u2028", ""])
PAIRS = st.recursive(
    st.one_of(st.none(), st.integers(-9, 9), st.booleans(), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(NAMES, inner), max_size=4).map(tuple)),
    max_leaves=12,
)


def written_json(value: object, space: str, ascii_only: bool) -> str:
    """JSON text; a tuple is an object, whose names may repeat."""
    if isinstance(value, tuple):
        fields = (
            f"{space}{json.dumps(name, ensure_ascii=ascii_only)}{space}:{space}{written_json(item, space, ascii_only)}"
            for name, item in value
        )
        return "{" + ",".join(fields) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written_json(item, space, ascii_only) for item in value) + "]"
    if isinstance(value, str) and space:  # a quote may also be written as \\u0022
        return json.dumps(value.replace('"', "\0"), ensure_ascii=ascii_only).replace("\\u0000", "\\u0022")
    return json.dumps(value, ensure_ascii=ascii_only)


def has_duplicate(value: object) -> bool:
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(has_duplicate(item) for _, item in value)
    return isinstance(value, list) and any(map(has_duplicate, value))


@given(value=PAIRS, space=st.sampled_from(["", " ", "\t "]), ascii_only=st.booleans())
def test_duplicate_field_is_found_in_any_json(value: object, space: str, ascii_only: bool) -> None:
    content = written_json(value, space, ascii_only).encode()
    found = find_duplicate_field(content, orjson.loads(content))
    assert (found is not None) == has_duplicate(value)


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "text": "b"}',
        '{"text": "a", "m": [{"k": 1, "x": 0, "k": 2}]}',
        '{"te\\u0078t": "a", "text": "b"}',
        '{"a": null, "a": "\\u0022", "text": "\\u0022"}',  # as many quotes as without the first field
    ],
)
def test_json_record_with_two_fields_of_one_name_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    records = read_all(path)
    assert texts(records) == ["good"]
    assert rejects(records) == [("byte 17", "duplicate-field")]
    assert isinstance(records[1], Reject)
    assert "fields 1 and " in records[1].excerpt
    with (
        open_decompressed(path) as stream,
        pytest.raises(InputError, match=r"a\.jsonl:2: fields 1 and . are both named"),
    ):
        list(read_json_objects(stream, str(path)))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.arrow"])
def test_table_with_two_columns_of_one_name_is_refused_if_they_are_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for names in (["id", "text", "text"], ["id", "n", "text", "n"]):
        if name.endswith("sv"):
            separator = "," if name == "a.csv" else "\t"
            path.write_text(separator.join(names) + "\n" + separator.join("x" * len(names)) + "\n")
        else:
            columns = pa.Table.from_arrays([pa.array(["x"])] * len(names), names)
            if name == "a.parquet":
                pq.write_table(columns, path)
            else:
                with pa.ipc.new_file(path, columns.schema) as writer:
                    writer.write_table(columns)
        is_text = names[1] == "text"
        with pytest.raises(InputError, match="columns 2 and 3 are both" if is_text else "columns 2 and 4 are both"):
            read_all(path)
    if name.endswith("sv"):
        assert texts(read_all(path, fields=Fields(drop_metadata=True))) == ["x"]


def test_struct_with_two_fields_of_one_name_is_refused(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["k", "k"])
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(path, pa.schema([("text", pa.string()), ("m", struct.type)])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array(["x"]), struct], ["text", "m"]))
    with pytest.raises(InputError, match="column m: columns 1 and 2 are both named 'k'"):
        read_all(path)


def test_unnamed_and_index_columns_are_never_the_text(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text(",name,\n0,x,y\n")
    assert rejects(read_all(csv)) == [("record 0", "no-text-field")]
    csv.write_text(",,text,\n0,1,x,y\n")
    (document,) = read_all(csv)
    assert isinstance(document, Document)
    assert document.text == "x"
    assert json.loads(document.metadata) == {"Unnamed: 0": "0", "Unnamed: 1": "1", "Unnamed: 3": "y"}
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"": "words", "__index_level_0__": "words"}\n')
    assert rejects(read_all(jsonl)) == [("byte 0", "no-text-field")]
    table = pa.table({"": ["words"], "__index_level_0__": ["words"], "Unnamed: 0": ["words"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert rejects(read_all(tmp_path / "a.parquet")) == [("record 0", "no-text-field")]
    assert rejects(read_all(tmp_path / "a.parquet", fields=Fields(drop_metadata=True))) == [
        ("record 0", "no-text-field")
    ]
