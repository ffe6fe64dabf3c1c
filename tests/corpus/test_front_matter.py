"""Headers of text files: fields when they are asked for, text otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrodb.corpus.document import Document, Fields, Reject
from retrodb.corpus.readers.front_matter import split_front_matter

from .conftest import read_all

YAML = "---\ntitle: A post\ndate: 2024-05-01\ntags: [a, b]\nkinds: !!set {y, x}\n1: one\nid: 7\n---\n\n# A post\n\nIts text.\n"
TOML = "+++\ntitle = 'A post'\ndraft = false\n+++\nIts text.\n"


def read_one(folder: Path, text: str, fields: Fields, name: str = "post.md") -> Document | Reject:
    (folder / name).write_bytes(text.encode())
    (record,) = read_all(folder / name, fields=fields)
    return record


@pytest.mark.parametrize("text", [YAML, TOML, YAML.replace("\n", "\r\n")])
def test_a_header_is_text_unless_it_is_asked_for(tmp_path: Path, text: str) -> None:
    assert read_one(tmp_path, text, Fields()) == Document("post.md", text, None, b"{}", "byte 0")


def test_a_header_becomes_metadata_and_the_path_stays_the_id(tmp_path: Path) -> None:
    document = read_one(tmp_path, "\ufeff" + YAML, Fields(front_matter="metadata"))
    assert isinstance(document, Document)
    assert (document.doc_id, document.text) == ("post.md", "# A post\n\nIts text.\n")
    expected = {"title": "A post", "date": "2024-05-01", "tags": ["a", "b"], "kinds": ["x", "y"], "1": "one", "id": 7}
    assert json.loads(document.metadata) == expected
    toml = read_one(tmp_path, TOML, Fields(front_matter="metadata"), "post.txt")
    assert toml == Document("post.txt", "Its text.\n", None, b'{"title":"A post","draft":false}', "byte 0")


def test_fields_of_a_header_are_named_as_those_of_other_records(tmp_path: Path) -> None:
    fields = Fields(front_matter="metadata", id="id", metadata=("title", "absent"))
    document = read_one(tmp_path, YAML, fields)
    assert document == Document("7", "# A post\n\nIts text.\n", None, b'{"title":"A post"}', "byte 0")


def test_each_document_between_markers_may_have_a_header(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text(f"{TOML}<end>\nno header\n<end>\n{YAML}")
    documents = read_all(tmp_path / "many.txt", fields=Fields(marker="<end>", front_matter="metadata"))
    assert [record.text for record in documents if isinstance(record, Document)] == [
        "Its text.",
        "no header",
        "# A post\n\nIts text.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "---\nA rule above a paragraph.\n---\nMore.\n",  # no fields
        "---\ntitle: never closed\n",
        "----\ntitle: a longer rule\n----\ntext",
        " ---\ntitle: x\n---\ntext",
        "---\n---\ntext\n",  # nothing between
        "---\ntitle: all there is\n---\n \n",
        "text\n---\ntitle: x\n---\n",
    ],
)
def test_what_is_no_header_of_a_text_is_text(tmp_path: Path, text: str) -> None:
    document = read_one(tmp_path, text, Fields(front_matter="metadata"))
    assert isinstance(document, Document)
    assert document.text == text


def test_a_page_that_is_only_a_header_has_its_fields_too() -> None:
    text = "---\ntitle: all there is\n...\n"
    assert split_front_matter(text) == ({"title": "all there is"}, text)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "header",
    [
        "---\ntitle: a: b\n---\n",
        "+++\ntitle: yaml\n+++\n",
        f"---\n{BOMB}---\n",
        f"---\na: {'[' * 100_000}\n---\n",
        f"---\na: {'[' * 100_000}{']' * 100_000}\n---\n",
        f"+++\na = {'[' * 100_000}{']' * 100_000}\n+++\n",
        "---\nn: 123456789012345678901234567890\n---\n",
        "---\ndate: 2024-13-01\n---\n",
        "---\nx: !!python/name:os.system\n---\n",
        "---\nx: !!int\n---\n",
        "---\nx: !!timestamp y\n---\n",
        '---\nx: "\\ud800"\n---\n',
    ],
)
def test_a_header_that_cannot_be_read_is_refused_with_its_place(tmp_path: Path, header: str) -> None:
    reject = read_one(tmp_path, header + "text\n", Fields(front_matter="metadata"))
    assert isinstance(reject, Reject)
    assert (reject.location, reject.reason) == ("byte 0", "bad-front-matter")
    assert reject.path.endswith("post.md")
    assert reject.excerpt.startswith(header[:3])


PIECES = "a|:|\n|- |{|}|[|]|!!timestamp|!!int|!!bool|!!float|!!omap|!!pairs|!!set|? |&a|*a|<<|\"|'|>|#|2024-01-01|1e400|.nan|=|é"


@given(pieces=st.lists(st.sampled_from(PIECES.split("|")), max_size=12), fence=st.sampled_from(["---", "+++"]))
def test_any_header_is_fields_or_text_or_refused(pieces: list[str], fence: str) -> None:
    text = f"{fence}\n{''.join(pieces)}\n{fence}\nbody"
    try:
        fields, rest = split_front_matter(text)
    except ValueError:
        return
    assert rest in ("body", text)
    json.dumps(fields)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("title: a\nx: {title: b}\nlist: [title, title]\ntitle: c", "fields 1 and 4 are both named 'title'"),
        ("a: {k: 1, 'k': 2}", "fields 1 and 2 are both named 'k'"),
        ("? [a]\n: 1\na: b\na: c", "fields 2 and 3 are both named 'a'"),
    ],
)
def test_two_fields_of_one_name_are_refused(tmp_path: Path, header: str, message: str) -> None:
    record = read_one(tmp_path, f"---\n{header}\n---\nText.\n", Fields(front_matter="metadata"))
    assert isinstance(record, Reject)
    assert (record.reason, record.excerpt) == ("duplicate-field", message)


@pytest.mark.parametrize(
    "text", ["---\na: [" + "1," * 600_000 + "]\n---\nx", "+++\n" + ".".join("a" * 20_000) + " = 1\n+++\nx"]
)
def test_header_that_takes_long_is_refused(tmp_path: Path, text: str) -> None:
    record = read_one(tmp_path, text, Fields(front_matter="metadata"))
    assert isinstance(record, Reject)
    assert record.reason == "bad-front-matter"
