"""Lists of document ids: every encoding and line ending, and names with a source."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.errors import InputError, RetroDBError, UsageError
from retrodb.view.id_list import parse_id_lines, read_id_list
from retrodb.view.named import DocumentName, resolve

ENCODINGS = [
    ("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE),
    ("utf-32-le", codecs.BOM_UTF32_LE), ("utf-32-be", codecs.BOM_UTF32_BE),
]  # fmt: skip
IDS = ["docs/index.md", "a b", " lead", "é漢", "{1b4e}", "\x85\u2028", '"quoted"', "#x", "\ufeffmark"]
no_breaks = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0{"), min_size=1)


@pytest.mark.parametrize(("encoding", "mark"), ENCODINGS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_encoding_and_line_ending_gives_the_same_ids(
    encoding: str, mark: bytes, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(mark + ending.join(["x", *IDS, "", "y"]).encode(encoding))
    assert read_id_list(path) == ["x", *IDS, "y"]


@given(ids=st.lists(no_breaks), encoding=st.sampled_from(ENCODINGS), ends=st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=200, deadline=None)
def test_any_ids_are_read_as_they_were_written(ids: list[str], encoding: tuple[str, bytes], ends: str) -> None:
    ids = ids if encoding[1] else ["x", *ids]  # without a mark, an id in front could look like one
    content = encoding[1] + "".join(each + ends for each in ids).encode(encoding[0])
    assert parse_id_lines(content, "list") == ids


@given(ids=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.just("docs"))))
@settings(max_examples=200, deadline=None)
def test_json_lines_give_any_id_and_source(ids: list[tuple[str, str | None]]) -> None:
    names = [DocumentName(doc_id, source) for doc_id, source in ids]
    assert parse_id_lines("".join(f"{name}\n" for name in names).encode(), "list") == names


@given(content=st.binary())
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_with_the_file(content: bytes) -> None:
    error = ""
    try:
        parse_id_lines(content, "the-list")
    except RetroDBError as refused:
        error = str(refused)
    assert not error or error.startswith("the-list")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\u00e9\n".encode("latin-1"), "not UTF-8.*iconv -f ISO-8859-1"),
        ("d1\nd2\n".encode("utf-16-le"), "zero bytes.*UTF-16LE"),
        (codecs.BOM_UTF16_LE + b"a\0\n", "not UTF-16"),
        (b'ok\n{"id": "a", "text": "b"}\n', r"list:2: unknown key 'text'"),
        (b'{"id": null}', "list:1: the id or the source is missing"),
        (b'{"source": "a"}', "list:1: the id or the source is missing"),
        (b'{"id": "cut', "list:1: the line begins like JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_reason(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_id_lines(content, "list")


def test_a_line_of_sql_output_is_a_name() -> None:
    line = {"message_type": "sql_row", "doc_id": "a\nb", "source": "s"}
    assert parse_id_lines(json.dumps(line).encode(), "list") == [DocumentName("a\nb", "s")]


pairs = st.sets(st.tuples(st.sampled_from(["a", "b", "a/b"]), st.sampled_from(["x", "b/x", "a/x", "a/b/x"])))
names = st.sampled_from(["x", "b/x", "a/x", "a/b/x", "y"])


@given(existing=pairs, chosen=st.lists(names | st.builds(DocumentName, names, st.none() | st.sampled_from(["a", "b"]))))
@settings(max_examples=500, deadline=None)
def test_a_name_never_means_a_document_with_another_id(
    existing: set[tuple[str, str]], chosen: list[str | DocumentName]
) -> None:
    """Whatever is chosen has the id of the list, one document per name; a name that could mean two is refused."""
    sources = sorted({source for source, _ in existing})
    if any(num_readings(name, existing) > 1 and num_ids(name, existing) for name in chosen):
        with pytest.raises(UsageError, match="ambiguous"):
            resolve(chosen, sources, lambda asked: existing & set(asked))
        return
    meant, unknown = resolve(chosen, sources, lambda asked: existing & set(asked))
    ids = {name if isinstance(name, str) else name.doc_id for name in chosen}
    assert {doc_id for _, doc_id in meant} <= ids
    assert len(meant) <= len(set(map(str, chosen))) - len(unknown)
    assert meant <= existing


def num_ids(name: str | DocumentName, existing: set[tuple[str, str]]) -> int:
    """How many documents have the id."""
    return num_readings(DocumentName(name) if isinstance(name, str) else name, existing)


def num_readings(name: str | DocumentName, existing: set[tuple[str, str]]) -> int:
    """How many documents a name can mean."""
    if isinstance(name, DocumentName):
        return len([1 for source, doc_id in existing if doc_id == name.doc_id and name.source in (None, source)])
    return len([1 for source, doc_id in existing if doc_id == name or f"{source}/{doc_id}" == name])


@pytest.mark.soak
@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=10_000, deadline=None)
def test_many_bytes_are_read_or_refused_with_the_file(content: bytes) -> None:
    error = ""
    try:
        parse_id_lines(content, "the-list")
    except RetroDBError as refused:
        error = str(refused)
    assert not error or error.startswith("the-list")
