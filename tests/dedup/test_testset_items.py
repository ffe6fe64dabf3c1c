"""Test-set files are read whole, or refused with file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from retrodb.dedup.testset_items import read_test_items
from retrodb.errors import InputError, UsageError

LINES = b'{"id": "a", "question": "Why?", "choices": ["x", "y"], "n": 3}\n\n{"question": "Who?", "choices": []}\n'


def test_every_packing_of_a_file_gives_the_same_items(tmp_path: Path) -> None:
    packings = {".jsonl": LINES, ".jsonl.gz": gzip.compress(LINES), ".jsonl.zst": zstandard.compress(LINES)}
    for suffix, data in packings.items():
        path = tmp_path / f"t{suffix}"
        path.write_bytes(data)
        items = read_test_items([path])
        assert items.ids == ("a", "3")  # the blank line is no record and does not end the file
        assert items.texts.to_pylist() == ["Why? x y", "Who? "]
        assert b'"n":3' in items.records[0]


def test_parquet_and_text_files_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"_id": [7, 8], "text": ["one", "two"]}), tmp_path / "t.parquet")
    (tmp_path / "page.txt").write_text("all of\n\nit")
    items = read_test_items([tmp_path / "t.parquet", tmp_path / "page.txt"])
    assert items.ids == ("7", "8", "page.txt")
    assert items.texts.to_pylist() == ["one", "two", "all of\n\nit"]


def test_template_names_the_fields(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"q": "Why {x}?", "c": ["a", 1], "n": 2.5}')
    items = read_test_items([tmp_path / "t.jsonl"], "{q} | {c} {n}")
    assert items.texts.to_pylist() == ["Why {x}? | a 1 2.5"]
    for template in ("no field", "{}", "{q.x}", "{q[0]}", "{q!r}", "{n:>9}", "{q"):
        with pytest.raises(UsageError, match="text template"):
            read_test_items([tmp_path / "t.jsonl"], template)


def test_missing_field_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for record in (b'{"b": "x"}', b'{"text": null}', b'{"text": {"a": 1}}'):
        path.write_bytes(b'{"text": "fine"}\n\n' + record)
        with pytest.raises(InputError, match=r"t\.jsonl:3"):
            read_test_items([path])
    with pytest.raises(InputError, match=r"t\.jsonl:1: no field 'q'"):
        read_test_items([path], "{q}")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.jsonl", b'{"text": "a"}\n{broken'),
        ("t.jsonl", b"[1, 2]"),
        ("t.jsonl", b'{"text": "\xff"}'),
        ("t.jsonl.gz", gzip.compress(LINES * 100, mtime=0)[:-20]),
        ("t.jsonl.zst", zstandard.compress(LINES * 100)[:-10]),
        ("t.parquet", b"PAR1 no parquet"),
        ("t.txt", b"\xff\xfe"),
        ("t.docx", b""),
    ],
)
def test_unreadable_file_is_refused_by_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        read_test_items([tmp_path / name])


def test_absent_file_is_refused(tmp_path: Path) -> None:
    for name in ("absent.jsonl", "absent.parquet"):
        with pytest.raises(InputError, match="no such file"):
            read_test_items([tmp_path / name])


def test_fields_with_long_texts_that_are_not_compared_are_named(tmp_path: Path) -> None:
    long = b"an answer of thirteen words or more, so that a document can quote it"
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"question": "Why?", "answer": "%b", "subject": "law"}\n{"text": "%b"}\n' % (long, long))
    assert read_test_items([path]).unused_text_fields == ("answer",)
    assert read_test_items([path]).texts.to_pylist() == ["Why?", long.decode()]
    path.write_bytes(b'{"question": "Why?", "answer": "%b"}' % long)
    assert read_test_items([path], "{question}").unused_text_fields == ()
