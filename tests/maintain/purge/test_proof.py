"""What a proof remembers: a file is read again unless nothing about it, nor about what is searched for, has changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_documents import made_text, write_documents

from retrodb.corpus.chunking import chunk_documents
from retrodb.database import Database
from retrodb.dedup.shingles import shingle_sets
from retrodb.engine.local import LocalEngine
from retrodb.engine.run import Run, open_run
from retrodb.errors import DamagedFileError
from retrodb.format.arrays import save_array
from retrodb.format.parquet import write_table
from retrodb.maintain.purge import proof, search_task
from retrodb.maintain.purge.proof import Proof, run_proof
from retrodb.maintain.purge.scanner import TraceScanner
from retrodb.maintain.purge.targets import find_targets
from retrodb.maintain.purge.traces import Traces, store_traces, traces_of
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.store.storage import FileStat, LocalStorage
from retrodb.view.view import SELF

Make = Callable[..., Database]
GONE, TEXT = "gone-1", made_text(5000, 150)


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that searches read. Files count as settled at once, so that a test need not wait."""
    paths: list[str] = []
    scan = TraceScanner.scan

    def recorded(self: TraceScanner, path: str, local: Path) -> None:
        paths.append(path)
        scan(self, path, local)

    monkeypatch.setattr(TraceScanner, "scan", recorded)
    monkeypatch.setattr(search_task, "_SETTLED_NS", -1)
    return paths


def search(database: Database, traces: Traces, *, read_all: bool = False, workers: int = 1) -> Proof:
    """Search all files for traces, in a run of these traces."""
    context = replace(database._context, engine=LocalEngine(workers))
    run = open_run(context.storage, "purge", {"traces": "some"})
    store_traces(run.storage, run.id, traces)
    return run_proof(context, context.view(), run, read_all=read_all)


def purged(make: Make, tmp_path: Path) -> tuple[Database, Traces]:
    """A database without a document, and the traces of this document."""
    database = make({GONE: TEXT, "a": made_text(1, 60), "b": made_text(2, 150)})
    database.ingest([write_documents(tmp_path / "more.jsonl", {"c": made_text(3, 90)})], source="more")
    database.embed()
    database.index()
    view = database.view()
    traces = traces_of(view, SELF, find_targets(database._context, view, [GONE]).first_chunks(SELF))
    assert database.purge([GONE]).is_clean
    return database, traces


def test_a_second_search_reads_new_and_changed_files_only(
    make_database: Make, tmp_path: Path, read_paths: list[str]
) -> None:
    database, traces = purged(make_database, tmp_path)
    read_paths.clear()
    first = search(database, traces)
    assert first.num_read_files == first.num_files == len(read_paths)
    read_paths.clear()
    second = search(database, traces)
    assert (read_paths, second.num_read_files) == ([], 0)
    assert replace(second, num_read_files=first.num_read_files) == first, "remembered files count as before"
    new = Path(database.path) / "tokens" / "planted.npy"
    save_array(new, database.view().chunks.gather_tokens(np.array([-1])).tokens)
    assert search(database, traces).remaining == ()
    assert read_paths == ["tokens/planted.npy"]
    read_paths.clear()
    assert search(database, traces, read_all=True).num_read_files == first.num_files + 1
    assert len(read_paths) == first.num_files + 1


def test_a_file_that_is_clean_of_other_traces_is_searched(
    make_database: Make, tmp_path: Path, read_paths: list[str]
) -> None:
    database, traces = purged(make_database, tmp_path)
    texts = pa.array([made_text(77, 50)], pa.large_string())
    path = Path(database.path) / "chunks" / "planted.parquet"
    write_table(path, pa.table({"text": texts}))
    other = Traces.of({"shingle": [shingle_sets(texts).keys]})
    assert search(database, traces).remaining == ()
    read_paths.clear()
    assert {trace.path for trace in search(database, other).remaining} == {"chunks/planted.parquet"}
    assert "chunks/planted.parquet" in read_paths


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_whose_bytes_changed_is_searched_again(
    in_place: bool, make_database: Make, tmp_path: Path, read_paths: list[str]
) -> None:
    database, traces = purged(make_database, tmp_path)
    tokens = np.zeros((2, 64), np.uint16)
    path = Path(database.path) / "tokens" / "planted.npy"
    save_array(path, tokens)
    assert search(database, traces).remaining == ()
    before = path.stat()
    planted = tmp_path / "planted.npy"
    tokens[1, :40] = _tokens_of(database, TEXT)[70:110]
    save_array(planted, tokens)
    if in_place:
        path.write_bytes(planted.read_bytes())
    else:
        os.replace(planted, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    read_paths.clear()
    [trace] = search(database, traces).remaining
    assert (trace.path, trace.location, trace.kind) == ("tokens/planted.npy", "array, row 1", "tokens")
    assert read_paths == ["tokens/planted.npy"]


def test_rows_of_live_documents_own_only_the_bytes_that_the_manifest_promises(
    make_database: Make, tmp_path: Path, read_paths: list[str]
) -> None:
    database, traces = purged(make_database, tmp_path)
    assert search(database, traces).remaining == ()
    [record] = database.view().chunks.overlapping("tokens", 0, 1)
    path = Path(database.path) / record.path
    tokens = np.load(path)
    tokens[0, :40] = _tokens_of(database, TEXT)[70:110]
    save_array(path, tokens)
    [trace] = search(database, traces).remaining
    assert (trace.path, trace.location) == (record.path, "array, row 0")


def test_a_file_that_just_changed_is_read_again(
    make_database: Make, tmp_path: Path, read_paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, traces = purged(make_database, tmp_path)
    monkeypatch.setattr(search_task, "_SETTLED_NS", 3_600_000_000_000)
    for _ in range(2):
        read_paths.clear()
        assert len(read_paths) < search(database, traces).num_read_files == len(read_paths)


def test_a_file_that_could_not_be_read_is_read_again(
    make_database: Make, tmp_path: Path, read_paths: list[str]
) -> None:
    database, traces = purged(make_database, tmp_path)
    path = Path(database.path) / "chunks" / "planted.parquet"
    path.write_bytes(b"no table")
    for _ in range(2):
        read_paths.clear()
        [trace] = search(database, traces).remaining
        assert (trace.path, trace.kind) == ("chunks/planted.parquet", "cannot be read")
        assert "chunks/planted.parquet" in read_paths


def test_the_newest_search_of_a_file_counts(
    make_database: Make, tmp_path: Path, read_paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, traces = purged(make_database, tmp_path)
    read_paths.clear()
    search(database, traces)
    scan, [victim] = TraceScanner.scan, [path for path in read_paths if path.startswith("chunks/")][:1]

    def fails(self: TraceScanner, path: str, local: Path) -> None:
        if path == victim:
            raise DamagedFileError("the disk cannot read it", where=path)
        scan(self, path, local)

    for _ in range(2):  # whichever order the records have
        with monkeypatch.context() as patch:
            patch.setattr(TraceScanner, "scan", fails)
            assert [trace.path for trace in search(database, traces, read_all=True).remaining] == [victim]
        read_paths.clear()
        assert search(database, traces).remaining == ()
        assert read_paths == [victim]
        read_paths.clear()
        assert search(database, traces).remaining == ()
        assert read_paths == []


def test_an_interrupted_search_continues_where_it_ended(
    make_database: Make, tmp_path: Path, read_paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, traces = purged(make_database, tmp_path)
    monkeypatch.setattr(proof, "_MIN_FILE_BYTES", proof._TASK_BYTES // 3)
    scan = TraceScanner.scan

    def stopped(self: TraceScanner, path: str, local: Path) -> None:
        if len(read_paths) == 8:
            raise KeyboardInterrupt
        scan(self, path, local)

    read_paths.clear()
    with monkeypatch.context() as patch:
        patch.setattr(TraceScanner, "scan", stopped)
        with pytest.raises(KeyboardInterrupt):
            search(database, traces)
    earlier = set(read_paths[:6])
    read_paths.clear()
    result = search(database, traces)
    assert result.remaining == ()
    assert not earlier & set(read_paths)
    assert result.num_read_files == result.num_files - 6 == len(read_paths)


def test_damaged_memory_is_no_memory(make_database: Make, tmp_path: Path, read_paths: list[str]) -> None:
    database, traces = purged(make_database, tmp_path)
    path = Path(database.path) / "tokens" / "planted.npy"
    save_array(path, _tokens_of(database, TEXT)[None, 70:110])
    search(database, traces)
    run = Path(database.path) / "runs" / open_run(database._context.storage, "purge", {"traces": "some"}).id
    [hits] = (run / "reports").iterdir()
    hits.write_bytes(bytes(hits.stat().st_size))
    read_paths.clear()
    assert [trace.path for trace in search(database, traces).remaining] == ["tokens/planted.npy"]
    assert "tokens/planted.npy" in read_paths
    for record in (run / "tasks").iterdir():
        record.write_bytes(b"{")
    read_paths.clear()
    result = search(database, traces)
    assert result.num_read_files == len(read_paths) > 10
    assert [trace.path for trace in result.remaining][-1] == "tokens/planted.npy"


def test_workers_find_what_one_process_finds(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, traces = purged(make_database, tmp_path)
    save_array(Path(database.path) / "tokens" / "planted.npy", _tokens_of(database, TEXT)[None, 70:110])
    alone = search(database, traces, read_all=True)
    monkeypatch.setattr(proof, "_MIN_FILE_BYTES", proof._TASK_BYTES // 25)
    assert search(database, traces, read_all=True, workers=2) == alone
    assert [trace.path for trace in alone.remaining] == ["tokens/planted.npy"]


def test_the_same_purge_again_reads_only_what_changed(
    make_database: Make, tmp_path: Path, read_paths: list[str]
) -> None:
    database = make_database({GONE: TEXT, "a": made_text(1, 60)})
    first = database.purge([GONE]).proof
    read_paths.clear()
    again = database.purge([GONE]).proof
    assert first is not None
    assert again is not None
    assert not {path for path in read_paths if not path.startswith(("snapshots/", "heads/", "manifests/", "runs/"))}
    read_paths.clear()
    everything = database.purge([GONE], search_all=True).proof
    assert everything is not None
    assert everything.num_read_files == everything.num_files
    assert len(read_paths) >= 2 * everything.num_files - 10


def _tokens_of(database: Database, text: str) -> np.ndarray:
    tokenizer = load_tokenizer(database.path, database.view().settings.tokenizer_sha256)
    chunks = chunk_documents(pa.array([text], pa.large_string()), None, tokenizer, 64, num_threads=1)
    return np.asarray(chunks.tokens)


def test_files_that_changed_last_are_searched_last() -> None:
    run = Run(LocalStorage("unused"), "run", "purge", "")
    stats = {path: FileStat(size, 7, changed_ns, f"{inode}") for path, inode, size, changed_ns in FILES}
    tasks = proof._tasks(run, "traces", stats, 0)
    assert [task.payload.paths for task in tasks] == [("old.npy",), ("large.npy",), ("new.npy", "newest.json")]
    assert [task.weight for task in tasks] == [10, 65 << 20, 30]


FILES = [("large.npy", 1, 65 << 20, 20), ("newest.json", 2, 10, 40), ("new.npy", 3, 20, 30), ("old.npy", 4, 10, 10)]
