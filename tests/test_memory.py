"""The memory limit: its default, its division among processes, and its refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_documents import made_text

import retrodb
from retrodb import memory
from retrodb.database import Database, build
from retrodb.errors import NotEnoughMemory, UsageError
from retrodb.facade.command_memory import LEAST_MIB
from retrodb.memory import MIB, PROCESS_MEMORY, ProcessMemory, require_memory, size_text, with_caches

Make = Callable[..., Database]


@pytest.fixture(autouse=True)
def _limit_of_the_tests() -> Iterator[None]:
    limit = PROCESS_MEMORY.limit_bytes
    yield
    PROCESS_MEMORY.begin(limit)


def fake_groups(folder: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]) -> None:
    """Control groups of this process, as the system shows them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "cgroup").write_text(groups)
    monkeypatch.setattr(memory, "_CGROUPS", folder)
    monkeypatch.setattr(memory, "_OWN_GROUPS", folder / "cgroup")


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/\n", {"memory.max": "268435456\n"}),
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": "268435456", "a/b/memory.max": "1073741824"}),
        ("4:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "268435456"}),
    ],
)
def test_half_of_the_limit_of_a_container_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]
) -> None:
    fake_groups(tmp_path, monkeypatch, groups, files)
    assert memory.default_memory() == 128 * MIB


def test_without_a_container_half_of_the_machine_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_groups(tmp_path, monkeypatch, "0::/\n", {"memory.max": "max"})
    machine = memory.machine_memory()
    assert machine > 256 * MIB
    assert memory.default_memory() == machine // 2
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "none")
    assert memory.machine_memory() == machine


def test_a_process_knows_how_much_it_took_since_it_began() -> None:
    process = ProcessMemory()
    process.begin(800 * MIB)
    assert process.cache_bytes == 100 * MIB
    block = bytes(64 * MIB) + b"1"  # written, so that it is resident
    assert process.grown_bytes > 50 * MIB or memory.anonymous_bytes() == 0
    del block


def test_the_least_leaves_room_for_the_caches() -> None:
    for needed in (1, 7, 700 * MIB + 3):
        least = with_caches(needed)
        assert least - memory.cache_bytes_of(least) >= needed
    assert size_text(900 * MIB) == "900MiB"
    assert size_text(900 * MIB + 1) == "901MiB"


def test_a_refusal_names_the_least_as_the_option_takes_it() -> None:
    require_memory("this", 300 * MIB, 300 * MIB)
    with pytest.raises(NotEnoughMemory) as caught:
        require_memory("this", 300 * MIB - 5, 299 * MIB)
    message = "this needs at least 300MiB of memory, and the limit is 299MiB. Give --memory 300MiB or more."
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_a_limit_that_is_not_positive_is_refused(make_database: Make) -> None:
    path = make_database({}).path
    for limit in (0, -1):
        with pytest.raises(UsageError, match="must be positive"):
            retrodb.open(path, memory_bytes=limit)


CALLS: dict[str, Callable[[Database, Path], object]] = {
    "ingest": lambda db, out: db.ingest([out / "db.jsonl"], source="other"),
    "dedup": lambda db, out: db.dedup([out / "db.jsonl"]),
    "near_duplicates": lambda db, out: db.near_duplicates(),
    "tag": lambda db, out: db.tag("score", regex="ka"),
    "filter": lambda db, out: db.filter(where="true"),
    "undelete": lambda db, out: db.undelete("filter"),
    "embed": lambda db, out: db.embed(),
    "index": lambda db, out: db.index(),
    "add_queries": lambda db, out: db.add_queries("mine", [out / "db.jsonl"]),
    "add_packed_queries": lambda db, out: db.add_packed_queries("mine", sequences=128),
    "neighbours": lambda db, out: db.neighbours(),
    "repair_neighbours": lambda db, out: db.repair_neighbours(),
    "export": lambda db, out: db.export(out / "out"),
    "refresh_export": lambda db, out: db.refresh_export(out / "out"),
    "search": lambda db, out: db.search(["ka"]),
    "search_arrays": lambda db, out: db.search_arrays(None, 1),  # type: ignore[arg-type]
    "searcher": lambda db, out: db.searcher(),
    "export_faiss": lambda db, out: db.export_faiss(out),
    "sql": lambda db, out: db.sql("select 1"),
    "leakage": lambda db, out: db.leakage(against=out / "db.jsonl"),
    "eval_retrieval": lambda db, out: db.eval_retrieval(queries="q", qrels="r"),
    "exposure": lambda db, out: db.exposure("t"),
    "diff": lambda db, out: db.diff(0, 1),
    "restore": lambda db, out: db.restore(0),
    "check": lambda db, out: db.check(read_data=True),
    "repair": lambda db, out: db.repair(),
    "compact": lambda db, out: db.compact(),
    "purge": lambda db, out: db.purge(["a"]),
    "update": lambda db, out: db.update(),
}


def test_every_command_refuses_too_little_memory_before_it_changes_anything(
    make_database: Make, tmp_path: Path
) -> None:
    path = make_database({"a": made_text(1, 100)}).path
    before = files_of(path)
    database = retrodb.open(path, memory_bytes=32 * MIB)
    assert CALLS.keys() == LEAST_MIB.keys()
    for name, call in CALLS.items():
        least = size_text(with_caches(LEAST_MIB[name] * MIB))
        with pytest.raises(NotEnoughMemory, match=rf"'{name.replace('_', '-')}' needs at least {least} of memory"):
            call(database, tmp_path)
    assert files_of(path) == before


def test_a_build_with_too_little_memory_makes_no_database(made_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughMemory, match="'update' needs at least"):
        build(tmp_path / "new", [tmp_path / "a.jsonl"], tokenizer=str(made_tokenizer), memory_bytes=32 * MIB)
    assert not (tmp_path / "new").exists()


def files_of(path: str) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in Path(path).rglob("*") if file.is_file()}
