from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrodb.corpus.document import Document
from retrodb.corpus.file_names import escape_name, matches_pattern
from retrodb.corpus.input_files import expand_inputs, find_files, is_stream, plan_splits
from retrodb.corpus.split import Split
from retrodb.errors import InputError, UsageError
from retrodb.format.json_codec import from_json, to_json

from .conftest import read_all
from .mutations import tar


@given(name=st.one_of(st.text(), st.binary().map(os.fsdecode), st.text(st.characters(categories=["Cs", "Lu"]))))
def test_escaped_name_is_text_and_leaves_utf8_alone(name: str) -> None:
    escaped = escape_name(name)
    escaped.encode()
    try:
        name.encode()
    except UnicodeEncodeError:
        assert escaped != name
    else:
        assert escaped == name


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet", ".tar", ".html", ".csv", ".warc"])
def test_file_whose_name_is_not_utf8_is_read_with_its_name_escaped(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("resiliparse")

    from .mutations import FILES

    folder = tmp_path / "in"
    folder.mkdir()
    raw = os.path.join(os.fsencode(folder), b"caf\xe9" + suffix.encode())
    content = next(content for name, content in FILES.items() if name.endswith(suffix))
    with open(raw, "wb") as file:
        file.write(content)
    for inputs in ([os.fsdecode(raw)], [folder], [f"{folder}/*"]):
        splits = plan_splits(expand_inputs(inputs), 1 << 30)
        assert [from_json(Split, to_json(split), where="") for split in splits] == splits
        records = read_all(*inputs)
        assert all(isinstance(record, Document) for record in records)
        assert records
        if suffix in (".txt", ".html"):
            assert [record.doc_id for record in records if isinstance(record, Document)] == [f"caf\\xe9{suffix}"]
    (tmp_path / "list").write_bytes(b"in/caf\xe9" + suffix.encode() + b"\n")
    assert [file.name for file in expand_inputs([], [tmp_path / "list"])] == [f"in/caf\\xe9{suffix}"]
    assert read_all(folder, target_bytes=300) == read_all(folder)


def test_member_whose_name_is_not_utf8_is_read_with_its_name_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"caf\udce9.md": b"# A", "\udcff.json": b"{"}))
    document, reject = read_all(tmp_path / "a.tar")
    assert isinstance(document, Document)
    assert document.doc_id == "caf\\xe9.md"
    assert not isinstance(reject, Document)
    assert reject.path == f"{tmp_path}/a.tar!\\xff.json"


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("*.md", ["a.md", "d/b.md", "d/e/c.md"]),
        ("d", ["d/b.md", "d/e/c.md", "d/x.png"]),
        ("d/", ["d/b.md", "d/e/c.md", "d/x.png"]),
        ("d/*", ["d/b.md", "d/e/c.md", "d/x.png"]),
        ("d/*.md", ["d/b.md"]),
        ("/*.md", ["a.md"]),
        ("./a.md", ["a.md"]),
        ("**/*.md", ["a.md", "d/b.md", "d/e/c.md"]),
        ("d/**/c.md", ["d/e/c.md"]),
        ("?.md", ["a.md", "d/b.md", "d/e/c.md"]),
        ("[ab].md", ["a.md", "d/b.md"]),
        ("e/c.md", []),
        ("A.md", []),
    ],
)
def test_pattern_matches_as_its_description_says(pattern: str, matching: list[str]) -> None:
    names = ["a.md", "d/b.md", "d/e/c.md", "d/x.png"]
    assert [name for name in names if matches_pattern(name, pattern)] == matching


@pytest.mark.parametrize("pattern", ["", "/", "./"])
def test_empty_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="matches no file"):
        matches_pattern("a", pattern)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, content in {
        "index.md": b"# Home",
        "docs/a.md": b"# A",
        "docs/b.html": b"<p>B",
        "img/a.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "img/b.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "img/c.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "font": b"wOF2\0\1",
    }.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_bytes(content)
    return tmp_path / "site"


@pytest.mark.parametrize("format", ["auto", "text"])
def test_pictures_among_pages_are_skipped_and_counted(site: Path, format: str) -> None:
    for inputs in ([site], [f"{site}/**"]):
        found = find_files(inputs, format=format)
        assert [file.name for file in found.files] == ["docs/a.md", "docs/b.html", "index.md"]
        assert found.skipped is not None
        assert str(found.skipped) == (
            f"Skipped 4 files that are not text (2 .jpg, 1 without a suffix, 1 .png). The first is {site}/font."
        )
    assert len(find_files([site / "img" / "a.png"]).files) == 1
    with pytest.raises(InputError, match=r"img/a\.png: none of the 3 files is read"):
        find_files([site / "img"])


def test_patterns_choose_files(site: Path) -> None:
    def names(*include: str, exclude: tuple[str, ...] = ()) -> list[str]:
        return [file.name for file in find_files([site], include=include, exclude=exclude).files]

    assert names("*.md") == ["docs/a.md", "index.md"]
    assert names("docs", "index.md") == ["docs/a.md", "docs/b.html", "index.md"]
    assert names(exclude=("docs/",)) == ["index.md"]
    assert names("docs", exclude=("*.html",)) == ["docs/a.md"]
    assert find_files([site], exclude=("img", "*.pdf"), include=("*",)).unmatched == ("*.pdf",)
    with pytest.raises(InputError, match="none of the 7 files is read"):
        names("*.rst")


def test_pipe_is_refused_with_its_name(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (pipe, tmp_path / "socket", f"/dev/fd/{reading}", f"/proc/self/fd/{reading}"):
            assert is_stream(path)
            with pytest.raises(InputError, match=r": not a regular file.*'-'") as error:
                expand_inputs([path])
            assert str(path) in str(error.value)
    (tmp_path / "list").write_text("pipe\n")
    with pytest.raises(InputError, match=r"line 1: not a regular file"):
        expand_inputs([], [tmp_path / "list"])
    os.close(reading)
    os.close(writing)


def test_descriptor_of_a_file_is_that_file_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    with open(path) as file:
        (found,) = expand_inputs([f"/dev/fd/{file.fileno()}"])
    assert (found.path, found.name) == (str(path), "a.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_list_has_one_name_on_each_line_whatever_the_name(tmp_path: Path, encoding: str, end: str) -> None:
    names = ["a\u2028b.md", "c\x0bd.md", "e\x85f.md", " blanks .md", "naïve.md"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "list").write_bytes((end.join(names) + end + end).encode(encoding))
    assert [file.name for file in expand_inputs([], [tmp_path / "list"])] == names
    (tmp_path / "list").write_text("  naïve.md \n")
    assert [file.name for file in expand_inputs([], [tmp_path / "list"])] == ["naïve.md"]
