"""The one reader of JSON Lines: positions, faults and limits of every line."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path

import pytest

from retrodb.corpus.readers.jsonl import LineTooLong, json_lines, read_json_objects
from retrodb.corpus.streams import open_decompressed
from retrodb.errors import InputError

CONTENT = b'\xef\xbb\xbf{"a": 1}\n\n  \n[2]\n{broken\n"\xe2\x80\xa8"\n'


def test_blank_lines_count_but_are_not_returned() -> None:
    lines = list(json_lines(io.BytesIO(CONTENT), 100))
    assert [(line.number, line.offset, line.value) for line in lines] == [
        (1, 0, {"a": 1}),
        (4, 16, [2]),
        (5, 20, None),
        (6, 28, "\u2028"),  # a line separator inside a string does not end the line
    ]
    assert [line.error is None for line in lines] == [True, True, False, True]


def test_long_line_is_an_error_and_reading_continues() -> None:
    lines = list(json_lines(io.BytesIO(b'"' + b"x" * 50 + b'"\n1\n'), 10))
    assert isinstance(lines[0].error, LineTooLong)
    assert lines[0].content == b'"' + b"x" * 9
    assert lines[1].value == 1


@pytest.mark.parametrize(("line", "fault"), [(b"[1]", "not a JSON object"), (b"{", "not valid JSON")])
def test_record_that_is_not_an_object_is_refused_with_its_line(line: bytes, fault: str) -> None:
    with pytest.raises(InputError, match=f"x.jsonl:3: {fault}"):
        list(read_json_objects(io.BytesIO(b"{}\n\n" + line), "x.jsonl"))


def test_compressed_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(gzip.compress(b'{"a": 1}\n')))
    writer.start()
    with open_decompressed(pipe) as stream:
        assert list(read_json_objects(stream, "pipe")) == [(1, {"a": 1})]
    writer.join()
