"""The machine that reads an input is not the one that planned it: it has no copies of that one, and another current folder."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from object_server import ObjectServer

from retrodb.config import IngestParams, InitParams
from retrodb.engine.progress import Bar
from retrodb.engine.run import Engine, Run
from retrodb.engine.task import Task, TaskFunction, TaskRecord
from retrodb.errors import InputError, MissingFileError, UnopenedInputError
from retrodb.format.parquet import read_table
from retrodb.stages.context import Context
from retrodb.stages.ingest.command import run_ingest
from retrodb.stages.init import run_init
from retrodb.store.open_storage import open_storage

from .ingest_model import documents, ingest, new_database, write_json_lines

TEXTS = {f"d{n}": f"Document {n} holds words, and their continuations." for n in range(20)}


class OtherMachine(Engine):
    """Reads inputs after something has happened."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens

    def execute(
        self,
        run: Run,
        tasks: Sequence[Task],
        function: TaskFunction,
        bar: Bar,
        *,
        isolated: bool = False,
        extra_bytes: int = 0,
    ) -> Iterable[tuple[Task, TaskRecord]]:
        if tasks[0].kind.stage == "read":
            self._happens()
        yield from super().execute(run, tasks, function, bar, isolated=isolated, extra_bytes=extra_bytes)


@pytest.fixture
def stored(
    store_url: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_tokenizer: Path
) -> Context:
    """A database in an object store, standard input with documents, and a machine without any copy that reads them."""
    del object_server
    monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / "cache"))
    content = write_json_lines(tmp_path / "a.jsonl", TEXTS).read_bytes() + b"no json\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    engine = OtherMachine(lambda: shutil.rmtree(tmp_path / "cache" / "objects"))
    context = Context(open_storage(store_url), engine)
    run_init(context, InitParams(str(made_tokenizer)))
    return context


def test_standard_input_is_read_where_its_copy_is_not(stored: Context) -> None:
    result = run_ingest(stored, ["-"], IngestParams("s", max_reject_rate=0.5))
    assert (result.num_added, result.num_rejected) == (len(TEXTS), 1)
    assert documents(stored) == {("s", key): text for key, text in TEXTS.items()}
    assert result.rejects_path is not None
    assert [row["path"] for row in read_table(stored.storage.local(result.rejects_path)).to_pylist()] == ["-"]
    assert not [path for path in stored.storage.list("") if path.startswith("tmp/") or "spool/" in path]


def test_standard_input_that_is_gone_is_an_error(stored: Context) -> None:
    def delete() -> None:
        stored.storage.delete_all([path for path in stored.storage.list("runs") if "spool/input" in path])

    context = replace(stored, engine=OtherMachine(delete))
    with pytest.raises(MissingFileError, match="spool/input-0"):
        run_ingest(context, ["-"], IngestParams("s", max_reject_rate=1.0))
    assert stored.view().snapshot.number == 0


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return new_database(tmp_path / "db")


def test_file_that_another_machine_does_not_have_ends_the_ingest(context: Context, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_json_lines(data / "a.jsonl", TEXTS)
    (data / "b.md").write_text("words")
    there = replace(context, engine=OtherMachine((data / "b.md").unlink))
    with pytest.raises(
        UnopenedInputError, match=r"data/b\.md: no such file, although .*Give all machines the same files"
    ):
        ingest(there, data, max_reject_rate=1.0)
    assert context.view().snapshot.number == 0


def test_file_that_another_machine_may_not_open_ends_the_ingest(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, os.strerror(13))

    there = OtherMachine(lambda: monkeypatch.setattr("retrodb.corpus.streams.open_source", refuse))
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be opened \(Permission denied\).*same files"):
        ingest(replace(context, engine=there), file, max_reject_rate=1.0)
    assert context.view().snapshot.number == 0


def test_relative_paths_are_shown_as_given(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.md").write_text("words")
    (data / "b.jsonl.gz").write_bytes(b"\x1f\x8bcut")
    (data / "c.jsonl").write_text("no json\n")
    monkeypatch.chdir(tmp_path)
    result = ingest(context, "data", max_reject_rate=1.0)
    assert documents(context) == {("s", "a.md"): "words"}
    assert result.rejects_path is not None
    rows = read_table(context.storage.local(result.rejects_path)).to_pylist()
    assert [row["path"] for row in rows] == ["data/b.jsonl.gz", "data/c.jsonl"]
    assert "data/" not in rows[0]["excerpt"]
    assert ingest(context, "data", max_reject_rate=1.0).num_skipped_inputs == 2
