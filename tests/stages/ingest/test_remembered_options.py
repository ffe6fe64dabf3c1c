"""A source remembers how its files are read: a forgotten option never replaces documents, and another one is announced."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from reading import live_texts

from retrodb.config import IngestParams
from retrodb.database import Database
from retrodb.errors import TooManyRejects, UsageError
from retrodb.format.entries import SourceEntry, dump_entry, parse_entry
from retrodb.maintain.update.recipe import RECIPE
from retrodb.stages.ingest.remembered import READING_OPTIONS, reading_options
from retrodb_cli.main import main

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    return make_database({})


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Six pages, each with a header."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.md").write_text(f"---\ntitle: Page {number}\n---\nThe text of page number {number}.\n")
    return folder


def run(database: Database, *arguments: str | Path) -> tuple[int, str]:
    """Exit code of `retrodb ingest` with these arguments, and what it writes."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with redirect_stdout(output), redirect_stderr(output):
        code = main(["ingest", database.path, *map(str, arguments)])
    return code, output.buffer.getvalue().decode()  # type: ignore[attr-defined]


# A value other than the default of each option, and a file that reads the same under it and the default or not at all.
VALUES: dict[str, Any] = {
    "format": "jsonl",
    "id_field": "key",
    "text_field": "body",
    "metadata_fields": ("year",),
    "drop_metadata": True,
    "include": ("*.jsonl",),
    "exclude": ("*.svg",),
    "marker": "###",
    "front_matter": "metadata",
    "max_document_chars": 500,
    "oversize": "split",
    "max_record_bytes": 10_000,
}


def test_every_option_is_remembered_or_is_of_one_run() -> None:
    of_one_run = {"source", "mirror", "limit", "holdout", "max_reject_rate"}
    assert {field.name for field in fields(IngestParams)} == {*READING_OPTIONS, *of_one_run}
    assert {*VALUES, "key_field", "value_field"} == set(READING_OPTIONS)


@pytest.mark.parametrize("name", VALUES)
def test_a_forgotten_option_takes_the_remembered_value(database: Database, tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.jsonl"
    row = {"id": "1", "key": "k1", "text": "The text.", "body": "The body.", "year": 1999, "kind": "x"}
    file.write_text(json.dumps(row) + "\n")
    database.ingest([file], source="s", **{name: VALUES[name]})
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "id": "2", "key": "k2"}) + "\n")
    result = database.ingest([file], source="s")
    assert (result.num_superseded, result.num_unchanged, result.num_added) == (0, 1, 1)
    assert len(result.notes) >= 1
    assert "As in the last ingest of source 's'" in result.notes[0]
    entry = database.view().snapshot.existing(SourceEntry, "s")
    assert entry.options is not None
    value = VALUES[name]
    assert entry.options[name] == (list(value) if isinstance(value, tuple) else value)


def test_forgotten_front_matter_supersedes_nothing(database: Database, pages: Path) -> None:
    assert run(database, pages, "--source", "s", "--front-matter", "metadata")[0] == 0
    before = database.view().snapshot.number
    (pages / "6.md").write_text("---\ntitle: new\n---\nA new page.\n")
    code, output = run(database, pages, "--source", "s")
    assert code == 0
    assert "As in the last ingest of source 's': --front-matter 'metadata'." in output
    assert database.view().snapshot.number > before
    assert live_texts(database)["6.md"].strip() == "A new page."


def test_another_option_is_refused_with_difference_and_count_and_then_allowed(database: Database, pages: Path) -> None:
    assert run(database, pages, "--source", "s", "--front-matter", "metadata")[0] == 0
    number = database.view().snapshot.number
    for dry_run in ((), ("--dry-run",)):
        code, output = run(database, pages, "--source", "s", "--front-matter", "text", *dry_run)
        assert code == 2
        assert database.view().snapshot.number == number
        assert "--front-matter was 'metadata' and is now 'text'" in output
        assert "6 documents would be superseded" in output
        assert "--change-options" in output
    code, output = run(database, pages, "--source", "s", "--front-matter", "text", "--change-options")
    assert code == 0
    assert "Other options than in the last ingest" in output
    assert live_texts(database)["0.md"].startswith("---")
    assert database.ingest([pages], source="s").num_skipped_inputs == 6  # the new value is remembered


def test_another_id_field_does_not_add_every_document_again(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"id": "{i}", "key": "k{i}", "text": "Text {i}."}}\n' for i in range(5)))
    database.ingest([file], source="s")
    with pytest.raises(
        UsageError, match=r"--id-field was not set and is now 'key'; 5 documents would be added although"
    ):
        database.ingest([file], source="s", id_field="key")
    assert database.ingest([file], source="s", id_field="key", change_options=True).num_added == 5


def test_an_empty_value_on_the_command_line_takes_the_default_again(database: Database, pages: Path) -> None:
    options = ("--exclude", "*.svg", "--metadata-field", "title", "--drop-metadata", "--text-field", "body")
    assert run(database, pages, "--source", "s", *options)[0] == 0
    empty = ("--exclude", "", "--metadata-field", "", "--keep-metadata", "--text-field", "", "--format", "auto")
    code, output = run(database, pages, "--source", "s", *empty, "--change-options")
    assert code == 0, output
    entry = database.view().snapshot.existing(SourceEntry, "s")
    assert entry.options == reading_options(IngestParams("s"))


def test_mirror_with_another_pattern_is_refused(database: Database, pages: Path) -> None:
    database.ingest([pages], source="s", mirror=True)
    with pytest.raises(UsageError, match=r"--include was not set and is now '0\.\*'; 5 documents would be removed"):
        database.ingest([pages], source="s", mirror=True, include=["0.*"])  # type: ignore[arg-type]


def test_new_files_may_have_other_options(database: Database, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "One."}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "2", "body": "Two."}\n')
    database.ingest([tmp_path / "a.jsonl"], source="s")
    result = database.ingest([tmp_path / "b.jsonl"], source="s", text_field="body")
    assert result.num_added == 1
    assert "--text-field was not set and is now 'body'" in result.notes[0]
    (tmp_path / "c.jsonl").write_text('{"id": "3", "text": "Three."}\n')
    with pytest.raises(TooManyRejects, match="As in the last ingest of source 's': --text-field 'body'"):
        database.ingest([tmp_path / "c.jsonl"], source="s")
    assert database.ingest([tmp_path / "c.jsonl"], source="s", text_field="").num_added == 1  # the default again


def test_the_recipe_states_all_options(database: Database, pages: Path) -> None:
    recipe = Path(database.path) / RECIPE
    recipe.write_text(f'[sources.s]\ninputs = ["{pages}"]\nfront_matter = "metadata"\n')
    assert database.update().exit_code == 0
    assert live_texts(database)["0.md"].startswith("The text")
    assert database.ingest([pages], source="s").num_skipped_inputs == 6  # what the recipe says is remembered
    recipe.write_text(f'[sources.s]\ninputs = ["{pages}"]\n')
    result = database.update()
    assert result.exit_code == 0, result
    assert live_texts(database)["0.md"].startswith("---")


def test_an_older_entry_remembers_nothing(database: Database, pages: Path) -> None:
    entry = SourceEntry("run", None, {"format": "auto"})
    plain = dict(dump_entry(entry))  # type: ignore[arg-type, call-overload]
    del plain["options"]
    assert parse_entry("source/s", plain, where="x") == replace(entry, options=None)
