"""Commands that delete take exactly the documents of a list."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from retrodb import errors

from .conftest import json_lines, ok, run


@pytest.fixture
def site(empty: Path, fresh, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A source `docs` with the documents `index.md` and `docs/index.md`, and a source `other` with `index.md`, too."""
    db: Path = fresh(empty)
    texts = {"index.md": "The first page of the whole site. " * 9, "docs/index.md": "Another page of the docs. " * 9}
    documents = [{"id": name, "text": text} for name, text in texts.items()]
    ok("ingest", db, json_lines(tmp_path / "a.jsonl", *documents), "--source", "docs", "--workers", 1)
    newlines = {"id": "line\nfeed", "text": "An id of two lines. " * 9}
    more = json_lines(tmp_path / "b.jsonl", {**documents[0], "text": "Something else. " * 9}, newlines)
    ok("ingest", db, more, "--source", "other", "--workers", 1)
    return db


def live(db: Path) -> set[tuple[str, str]]:
    rows = ok("sql", db, "select source, doc_id from documents where live", "--json").rows
    return {(row["source"], row["doc_id"]) for row in rows}


ALL = {("docs", "index.md"), ("docs", "docs/index.md"), ("other", "index.md"), ("other", "line\nfeed")}
COMMANDS = [("filter", "--reason", "taken"), ("purge", "--yes", "--workers", 1)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_name_that_can_be_read_in_two_ways_deletes_nothing(
    command: tuple[object, ...], site: Path, tmp_path: Path
) -> None:
    ids = tmp_path / "take.txt"
    ids.write_text("docs/index.md\n")
    done = run(command[0], site, "--doc-ids", ids, *command[1:])
    assert done.code == errors.EXIT_USAGE
    for candidate in ('{"id": "docs/index.md", "source": "docs"}', '{"id": "index.md", "source": "docs"}', "--source"):
        assert candidate in done.err
    ids.write_text("index.md\n")
    assert '{"id": "index.md", "source": "other"}' in run(command[0], site, "--doc-ids", ids, *command[1:]).err
    assert live(site) == ALL


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("content", "source", "taken"),
    [
        (b"docs/index.md\n", "docs", {("docs", "docs/index.md")}),
        (b'{"id": "docs/index.md"}\n', None, {("docs", "docs/index.md")}),
        (b'{"id": "index.md", "source": "other"}\r\n', None, {("other", "index.md")}),
        (b'{"id": "line\\nfeed"}', None, {("other", "line\nfeed")}),
        (codecs.BOM_UTF16_LE + "index.md\r\n".encode("utf-16-le"), "other", {("other", "index.md")}),
    ],
)
def test_a_list_takes_the_documents_that_it_names(
    command: tuple[object, ...],
    content: bytes,
    source: str | None,
    taken: set[tuple[str, str]],
    site: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "take.txt").write_bytes(content)
    ok(command[0], site, "--doc-ids", tmp_path / "take.txt", *(["--source", source] if source else []), *command[1:])
    assert live(site) == ALL - taken


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_source_and_id_are_not_a_plain_id(command: tuple[object, ...], site: Path, tmp_path: Path) -> None:
    """After the document is gone, the same list takes no other one."""
    ids = tmp_path / "take.txt"
    ids.write_text('{"id": "docs/index.md"}\n')
    ok(command[0], site, "--doc-ids", ids, *command[1:])
    before = live(site)
    ids.write_text("other/index.md\nnobody\n")
    done = run(command[0], site, "--doc-ids", ids, *command[1:])
    assert done.code in (errors.EXIT_REJECTS, errors.EXIT_USAGE)
    assert live(site) == before
    assert ok(command[0], site, "--doc-ids", ids, "--ignore-unknown", *command[1:]).code == 0


@pytest.mark.parametrize("command", [*COMMANDS, ("undelete", "--reason", "taken")], ids=lambda command: command[0])
def test_unknown_names_are_counted_and_end_with_a_code(command: tuple[object, ...], site: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text('{"id": "line\\nfeed"}\n')
    ok("filter", site, "--doc-ids", tmp_path / "one.txt", "--reason", "taken")
    names = [f"n{number}" for number in range(8)]
    (tmp_path / "take.txt").write_text("\n".join([*names, '{"id": "line\\nfeed"}']))
    done = run(command[0], site, "--doc-ids", tmp_path / "take.txt", *command[1:])
    assert done.code == errors.EXIT_REJECTS
    assert "1 of 9 names are in the database. Unknown: 'n0', 'n1', 'n2', 'n3', 'n4', ..." in done.err
    assert "--ignore-unknown" in done.err


@pytest.mark.parametrize("command", [*COMMANDS, ("undelete", "--reason", "taken")], ids=lambda command: command[0])
def test_lists_that_cannot_be_decoded_are_refused(command: tuple[object, ...], site: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    done = run(command[0], site, "--doc-ids", tmp_path / "latin.txt", *command[1:])
    assert (done.code, "latin.txt: the list is not UTF-8" in done.err) == (errors.EXIT_ERROR, True)
