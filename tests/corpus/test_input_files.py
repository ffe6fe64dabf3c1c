from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrodb.corpus.document import Fields
from retrodb.corpus.input_files import expand_inputs, file_digest, plan_splits, spool
from retrodb.corpus.split import Split
from retrodb.errors import InputError, UsageError

from .conftest import json_lines, read_all

LINES = json_lines(*({"id": n, "text": f"text {n} " * (n % 13 + 1)} for n in range(500)))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_bytes(LINES + b"\n\n" + LINES[:-1])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES, mtime=0))
    table = pa.table({"text": [f"row {n}" for n in range(1000)]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=90)
    (tmp_path / "d.txt").write_text("<|>".join(f"piece {n}\n" * (n % 5) for n in range(300)))
    for n in range(20):
        (tmp_path / f"e{n:02}.md").write_text(f"# {n}")
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        for n in range(40):
            header = tarfile.TarInfo(f"{'long/' * 30}{n}.md")
            header.size = 5
            archive.addfile(header, io.BytesIO(b"# x%02d" % n))
    return tmp_path


@pytest.mark.parametrize("target_bytes", [1, 100, 3_000, 20_000])
def test_records_are_the_same_whatever_the_splits(corpus: Path, target_bytes: int) -> None:
    fields = Fields(marker="<|>")
    whole = read_all(corpus, fields=fields)
    assert read_all(corpus, fields=fields, target_bytes=target_bytes) == whole
    assert len(whole) == 500 * 3 + 1000 + 240 + 20 + 40


def test_large_files_are_cut_and_small_ones_grouped(corpus: Path) -> None:
    splits = plan_splits(expand_inputs([corpus]), 20_000)
    parts = {name: sum(name in split.files[0].path for split in splits) for name in ("a.jsonl", "c.parquet", "f.tar")}
    assert parts["a.jsonl"] >= 3
    assert parts["f.tar"] >= 2
    assert any(len(split.files) >= 20 for split in splits)


def test_split_survives_json(corpus: Path) -> None:
    for split in plan_splits(expand_inputs([corpus]), 10_000):
        assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split


def test_folders_globs_and_lists_name_files_once_in_order(tmp_path: Path) -> None:
    for name in ("z/b.md", "z/a.md", "z/.hidden/c.md", "y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "list.gz").write_bytes(gzip.compress(b"y.txt\n\nz/a.md\n", mtime=0))
    files = expand_inputs([tmp_path / "y.txt", f"{tmp_path}/**/*.md", tmp_path / "z"], [tmp_path / "list.gz"])
    assert [(file.name, file.format) for file in files] == [
        ("y.txt", "text"),
        ("z/a.md", "markdown"),
        ("z/b.md", "markdown"),
    ]
    assert [file.name for file in expand_inputs([], [tmp_path / "list.gz"])] == ["y.txt", "z/a.md"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a", b'{"text": "x"}\n', "jsonl"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}\n', "jsonl"),
        ("a.json", b'\n [{"text": "x"}]', "json"),
        ("a.json", b'{\n "text": "x"}', "json"),
        ("a.dat", b"PAR1....", "parquet"),
        ("a.txt", b"WARC/1.0\r\n", "warc"),
        ("a", b"<!DOCTYPE html><p>", "html"),
        ("a", "naïve".encode() * 20_000, "text"),
        ("a", b"\x00\x01", "unknown"),
        ("a.MD", b"x", "markdown"),
        ("page.html.gz", gzip.compress(b"<p>x", mtime=0), "html"),
        ("a.jsonl", b"", "jsonl"),
    ],
)
def test_format_is_told_by_content_then_by_name(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expand_inputs([tmp_path / name])[0].format == expected
    assert expand_inputs([tmp_path / name], format="text")[0].format == "text"


def test_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        expand_inputs([tmp_path / "absent.jsonl"])
    with pytest.raises(InputError, match="no file matches"):
        expand_inputs([f"{tmp_path}/*.jsonl"])
    (tmp_path / "list").write_text("https://example.org/a.warc.gz\n")
    with pytest.raises(InputError, match=r"line 1.*not a local file"):
        expand_inputs([], [tmp_path / "list"])
    with pytest.raises(UsageError, match="jsonl"):
        expand_inputs([tmp_path], format="jsonlines")
    with pytest.raises(UsageError, match="standard input"):
        expand_inputs(["-"])


def test_standard_input_is_spooled_to_a_file(tmp_path: Path) -> None:
    spool(io.BytesIO(LINES), tmp_path / "stdin")
    assert (tmp_path / "stdin").read_bytes() == LINES
    assert len(read_all(tmp_path / "stdin")) == 500
    assert file_digest(tmp_path / "stdin") != file_digest(__file__)
