"""Query files are read as lines of text or as JSON Lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from retrodb.errors import InputError
from retrodb.stages.search.query_file import read_texts


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"\xef\xbb\xbffirst\r\n\n  second \n", ["first", "second"]),
        (
            b'\xef\xbb\xbf\n{"query": "one"}\n\n{"text": "two \xe2\x80\xa8 lines", "query": "no"}',
            ["one", "two \u2028 lines"],
        ),
    ],
)
def test_blank_lines_and_byte_order_mark_are_skipped(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    (tmp_path / "queries").write_bytes(content)
    assert read_texts(tmp_path / "queries") == texts


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"query": "one"}\nplain', "queries:2: not valid JSON"),
        (b'{"query": "one"}\n\n{"q": "two"}', "queries:3: no query in this record"),
        (b"\xff", "not UTF-8"),
        (b" \n", "no queries"),
    ],
)
def test_unreadable_query_is_refused_with_its_line(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "queries").write_bytes(content)
    with pytest.raises(InputError, match=fault):
        read_texts(tmp_path / "queries")


def test_compression_follows_from_the_content(tmp_path: Path) -> None:
    (tmp_path / "queries").write_bytes(gzip.compress(b'{"query": "one"}\n'))
    assert read_texts(tmp_path / "queries") == ["one"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_query_file_has_one_query_on_each_line_whatever_its_characters(tmp_path: Path, end: str) -> None:
    queries = ["a\u2028b", "c\x0bd", "e\x85f", "g\x1ch", "naïve"]
    (tmp_path / "queries.txt").write_bytes((end.join(queries) + end + end).encode())
    assert read_texts(tmp_path / "queries.txt") == queries
