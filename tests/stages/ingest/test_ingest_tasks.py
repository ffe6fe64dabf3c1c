"""Ingest in parts: workers, splits, interruptions, processes that die, and the ways to name inputs."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrodb.config import IngestParams
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import Bar
from retrodb.engine.run import Engine, Run
from retrodb.engine.task import Task, TaskFunction, TaskRecord
from retrodb.engine.worker import Worker, WorkerOptions
from retrodb.engine.worker_engine import WorkerEngine
from retrodb.errors import InputError, UsageError
from retrodb.format.parquet import read_table
from retrodb.stages.context import Context
from retrodb.stages.ingest import read_tasks
from retrodb.stages.ingest.command import run_ingest

from .ingest_model import documents, held_out_documents, ingest, new_database, write_json_lines

KINDS = ("documents", "chunks", "tokens", "hashes", "ids", "queries", "tombstones", "rejects", "inputs")
TEXTS = {f"d{n}": f"Document {n} holds words, and their continuations. " * (n % 5 + 1) for n in range(60)}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return new_database(tmp_path / "db")


def digests(context: Context) -> dict[str, str]:
    """Path -> SHA-256 of every live file."""
    manifest = context.view().manifest
    return {r.path: r.digest.sha256.hex() for kind in KINDS for r in manifest.files(kind)}


def rows_in_order(context: Context) -> list[str]:
    chunks = context.view().chunks
    return chunks.texts(np.arange(chunks.end), deleted_too=True)


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of two kilobytes, in processes if there are several workers."""
    monkeypatch.setattr(read_tasks, "_MIN_SEGMENT", 2048)
    monkeypatch.setattr(read_tasks, "_SMALL_BYTES", {})


@pytest.mark.usefixtures("many_tasks")
def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    one, two = new_database(tmp_path / "one"), new_database(tmp_path / "two")
    ingest(one, file, holdout=0.2)
    ingest(replace(two, engine=LocalEngine(2)), file, holdout=0.2)
    assert digests(one) == digests(two)
    assert len(one.view().shards) > 3
    assert held_out_documents(one) == held_out_documents(two)


@pytest.mark.parametrize("segment", [300, 5000, 1 << 20])
def test_order_does_not_depend_on_the_size_of_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    whole, parts = new_database(tmp_path / "whole"), new_database(tmp_path / "parts")
    ingest(whole, file)
    monkeypatch.setattr(read_tasks, "_MIN_SEGMENT", segment)
    ingest(parts, file)
    assert rows_in_order(parts) == rows_in_order(whole)
    assert list(documents(parts).items()) == list(documents(whole).items())


class Interrupted(Engine):
    """Is killed after so many tasks."""

    def __init__(self, after: int) -> None:
        self.left = after

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
        for task, record in super().execute(run, tasks, function, bar, isolated=isolated):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield task, record


@pytest.mark.usefixtures("many_tasks")
def test_killed_after_any_task_it_continues_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    with file.open("a") as sink:
        sink.write("no json\n")
    params = IngestParams("s", holdout=0.2, max_reject_rate=0.5)
    whole = new_database(tmp_path / "whole")
    run_ingest(whole, [str(file)], params)
    for after in (0, 1, 3, 6, 9):
        context = new_database(tmp_path / f"killed-{after}")
        with pytest.raises(KeyboardInterrupt):
            run_ingest(replace(context, engine=Interrupted(after)), [str(file)], params)
        assert context.view().snapshot.number == 0
        counted = Interrupted(1000)
        later = replace(context, engine=counted, clock="2027-01-01T00:00:00.000000+00:00")
        run_ingest(later, [str(file)], params)
        assert digests(context) == digests(whole), f"killed after {after} tasks"
        assert context.view().snapshot.clock == whole.view().snapshot.clock
        done = 1000 - counted.left
        assert done <= 30 - after


def test_another_reject_rate_goes_on_with_the_work_done(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "a", "text": "text"}\nno json\n')
    with pytest.raises(InputError):
        ingest(context, file)
    monkeypatch.setattr(read_tasks, "run_read", lambda *_: pytest.fail("read again"))
    assert ingest(context, file, max_reject_rate=1.0).num_added == 1


def test_cut_off_input_is_an_error_and_commits_nothing(context: Context, tmp_path: Path) -> None:
    whole = gzip.compress(write_json_lines(tmp_path / "a.jsonl", TEXTS).read_bytes())
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz: .*cut off"):
        ingest(context, cut)
    assert context.view().snapshot.number == 0


CRASH = """
import ctypes
from retrodb.corpus import readers

read = readers.READERS["html"]

def crash(source, fields, limits):
    if source.name == "bad.html":
        ctypes.string_at(0)
    yield from read(source, fields, limits)

readers.READERS["html"] = crash
"""


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Three pages, one of which crashes its reader where `crashes` says so."""
    pytest.importorskip("resiliparse")
    pages = tmp_path / "pages"
    pages.mkdir()
    for name in ("a", "bad", "c"):
        (pages / f"{name}.html").write_text(f"<html><body><p>The page {name} has words.</p></body></html>")
    return pages


def crashes(patched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the processes that start from now on crash at a page, and not this one."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH)
    patched.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")


def test_reader_that_crashes_costs_its_file_and_not_the_run(
    context: Context, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        crashes(patched, tmp_path)
        result = ingest(context, pages, max_reject_rate=0.5)
        assert (result.num_read, result.num_added, result.num_rejects_by_reason) == (3, 2, {"reader-crashed": 1})
        assert result.rejects_path is not None
        [row] = read_table(context.storage.local(result.rejects_path)).to_pylist()
        assert row["path"] == str(pages / "bad.html")
        with pytest.raises(InputError, match=r"bad\.html: its reader crashes, and --mirror"):
            ingest(context, pages / "bad.html", max_reject_rate=1.0, mirror=True)
    corrected = ingest(context, pages)
    assert (corrected.num_skipped_inputs, corrected.num_added) == (2, 1)
    assert {key for _, key in documents(context)} == {"a.html", "bad.html", "c.html"}


@pytest.mark.parametrize("names", [["bad"], ["a", "bad"]])
def test_reader_that_crashes_costs_its_file_on_workers_too(
    context: Context, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    crashes(monkeypatch, tmp_path)
    worker = Worker(context.storage, WorkerOptions(idle_exit_s=3))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(worker.run)
        there = replace(context, engine=WorkerEngine(lease_s=1))
        result = ingest(there, *(pages / f"{name}.html" for name in names), max_reject_rate=1.0)
    assert result.num_rejects_by_reason == {"reader-crashed": 1}
    assert {key for _, key in documents(context)} == {f"{name}.html" for name in names if name != "bad"}


@pytest.mark.usefixtures("many_tasks")
def test_standard_input_is_read_as_a_file(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(write_json_lines(tmp_path / "a.jsonl", TEXTS).read_bytes() + b"no json\n")

    def pipe() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    pipe()
    with pytest.raises(KeyboardInterrupt):
        run_ingest(replace(context, engine=Interrupted(0)), ["-"], IngestParams("s", max_reject_rate=0.5))
    pipe()
    result = ingest(context, "-", max_reject_rate=0.5)
    assert (result.num_added, result.num_rejected) == (60, 1)
    assert documents(context) == {("s", key): text for key, text in TEXTS.items()}
    assert result.rejects_path is not None
    assert [row["path"] for row in read_table(context.storage.local(result.rejects_path)).to_pylist()] == ["-"]
    assert not [path for path in context.storage.list("runs") if "spool/input" in path]
    assert not context.storage.list("tmp")
    pipe()
    assert ingest(context, "-", max_reject_rate=0.5).num_skipped_inputs == 1
    assert not context.storage.list("tmp")


def test_inputs_are_folders_globs_archives_and_lists(context: Context, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    for name in ("one.md", "deep/two.md"):
        (data / name).write_text(f"# {name}\n")
    write_json_lines(data / "deep" / "three.jsonl", {"three": "text"})
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(data, ".")
    (tmp_path / "list.txt").write_text("data/one.md\n\ndata/deep/three.jsonl\n")
    expected = {"one.md", "deep/two.md", "three"}
    for source, inputs in {"folder": [data], "glob": [f"{data}/**/*.*"], "tar": [tmp_path / "all.tar.gz"]}.items():
        ingest(context, *inputs, source=source)
        assert {key.removeprefix("./") for name, key in documents(context) if name == source} == expected
    run_ingest(context, [], IngestParams("list"), files_from=[str(tmp_path / "list.txt")])
    assert {key for name, key in documents(context) if name == "list"} == {"data/one.md", "three"}
    with pytest.raises(UsageError, match="no input files"):
        run_ingest(context, [], IngestParams("list"))


def test_marker_separates_the_documents_of_a_text_file(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_tasks, "_MIN_SEGMENT", 100)
    file = tmp_path / "all.txt"
    file.write_text("<|endoftext|>".join(TEXTS.values()))
    assert ingest(context, file, marker="<|endoftext|>").num_added == 60
    assert list(documents(context).values()) == list(TEXTS.values())


def test_progress_says_bytes_and_documents(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrodb.engine import progress

    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    lines = io.StringIO()
    ingest(replace(context, progress=progress.LineProgress(lines)), write_json_lines(tmp_path / "a.jsonl", TEXTS))
    assert "MB/s" in lines.getvalue()
    assert "read/s" in lines.getvalue()


def test_result_is_plain_values(context: Context, tmp_path: Path) -> None:
    result = ingest(context, write_json_lines(tmp_path / "a.jsonl", TEXTS))
    values: dict[str, Any] = json.loads(json.dumps(result.__dict__))
    assert values["num_read"] == values["num_added"] == 60
