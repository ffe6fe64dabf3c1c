"""Commands keep their memory limit, all processes together, and end in the same bytes as without one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_documents import made_text, write_documents
from process_tree import process_tree

import retrodb
from retrodb.memory import MIB, anonymous_bytes

LIMIT = 520  # MiB: room for the process of a command and two more, never for four
TOLERANCE = 1.05  # a process takes pages for a moment that its last sample does not show
RETRODB = Path(sys.executable).with_name("retrodb")
CLOCKED = {"documents"}  # kinds whose files have the time of the command in them

Files = list[tuple[str, bytes]]
"""Kind and digest of every live file, and of the files of an export."""


def run_sampled(arguments: Sequence[object]) -> tuple[int, int, str]:
    """The exit code of a command, the largest sum of the anonymous memory of its processes, and what it wrote to stderr."""
    peak = 0
    command = [str(RETRODB), *map(str, arguments), "--no-progress"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(anonymous_bytes, process_tree(process.pid))))
            time.sleep(0.01)
        assert process.stderr is not None
        return process.returncode, peak, process.stderr.read()


def files_of(folder: Path, out: Path) -> Files:
    records = retrodb.open(folder).view().manifest.all_files()
    live = [(record.kind, record.digest.sha256) for record in records if record.kind not in CLOCKED]
    exported = [(path.name, hashlib.sha256(path.read_bytes()).digest()) for path in out.rglob("*.parquet")]
    return sorted([*live, *exported])


def check_limit(base: Path, folder: Path, arguments: Sequence[object], limit_mib: int, workers: Sequence[int]) -> None:
    """Run a command on copies of a database, without a limit and with one, and compare the files and the memory."""
    results = list[Files]()
    for number in (None, *workers):
        out = folder.with_name("out")
        for scratch in (folder, out):
            shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(base, folder)
        limit = () if number is None else ("--memory", f"{limit_mib}MiB", "--workers", number)
        code, peak, errors = run_sampled(
            [*({"DB": folder, "OUT": out}.get(str(word), word) for word in arguments), *limit]
        )
        assert code == 0, errors
        results.append(files_of(folder, out))
        assert number is None or peak <= TOLERANCE * limit_mib * MIB, (arguments, number, peak / MIB)
    assert len(results[0]) > 0
    assert all(files == results[0] for files in results), arguments


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path) -> Path:
    """A database of four shards, indexed."""
    folder = tmp_path_factory.mktemp("limited")
    os.environ["RETRODB_CACHE_DIR"] = str(folder / "cache")
    database = retrodb.create(folder / "db", tokenizer=str(made_tokenizer), encoder="hashing:32")
    for shard in range(4):
        texts = {f"{shard}-{i}": made_text(i if i % 5 == 0 else f"{shard}-{i}", 300) for i in range(60)}
        database.ingest([write_documents(folder / f"{shard}.jsonl", texts)], source="made")
    database.embed()
    database.index(factory="IVF8,SQ8")
    return folder / "db"


COMMANDS = (
    ("tag", "DB", "--name", "score", "--regex", "kaban"),
    ("dedup", "DB", "--near-duplicates"),
    ("neighbours", "DB", "--exact"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_command_keeps_its_limit_and_its_bytes(shards: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    check_limit(shards, tmp_path / "db", arguments, LIMIT, workers=(4,))


def test_a_limit_below_the_least_of_one_process_is_refused_and_nothing_is_written(shards: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    code, _, errors = run_sampled(["tag", shards, "--name", "score", "--regex", "kaban", "--memory", "64MiB"])
    assert code == 2
    assert "'tag' needs at least 206MiB of memory, and the limit is 64MiB. Give --memory 206MiB or more." in errors
    assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == before


@pytest.mark.soak
def test_every_stage_of_a_larger_database_keeps_its_limit(made_tokenizer: Path, tmp_path: Path) -> None:
    """70,000 chunks: several tasks in every stage, and 1, 2 and 4 workers."""
    source, db = tmp_path / "documents.jsonl", tmp_path / "db"
    write_documents(source, {str(i): made_text(i if i % 50 else "same", 400 + i % 7 * 300) for i in range(3500)})
    testset = write_documents(tmp_path / "test.jsonl", {f"t{i}": made_text(i, 100) for i in range(0, 300, 3)})
    retrodb.create(db, tokenizer=str(made_tokenizer), encoder="hashing:64")
    scratch = tmp_path / "scratch"
    stages: tuple[tuple[object, ...], ...] = (
        ("ingest", "DB", source, "--source", "made"),
        ("dedup", "DB", "--against", testset),
        ("dedup", "DB", "--near-duplicates"),
        ("tag", "DB", "--name", "score", "--regex", "kaban"),
        ("embed", "DB"),
        ("index", "DB"),
        ("neighbours", "DB"),
        ("export", "DB", "OUT"),
        ("compact", "DB", "--min-deleted", "0"),
        ("neighbours", "DB", "--repair"),
        ("check", "DB", "--read-data"),
        ("purge", "DB", "--doc-ids", tmp_path / "ids.txt", "--yes"),
    )
    (tmp_path / "ids.txt").write_text("7\n")
    for arguments in stages:
        check_limit(db, scratch, arguments, 512, workers=(1, 2, 4))
        shutil.rmtree(db)
        scratch.rename(db)
