"""Runs of the whole command line in this process, and one small database that has seen every stage."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retrodb_cli.main import main

SUBJECTS = ["retrieval", "grammar", "harbour", "granite", "violin", "orchard", "glacier", "lantern"]


@dataclass(frozen=True)
class Done:
    """How a run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def row(self) -> dict[str, Any]:
        """The only JSON line on stdout."""
        assert self.code in (0, 3, 5), self.err
        [row] = self.rows
        return row

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The JSON lines on stderr."""
        return [json.loads(line) for line in self.err.splitlines()]


def run(*arguments: object) -> Done:
    """`retrodb` with these arguments."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(each) for each in arguments])
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


def ok(*arguments: object) -> Done:
    """A run that has to end well."""
    done = run(*arguments)
    assert done.code == 0, done.err
    return done


def json_lines(path: Path, *records: object) -> Path:
    """A file with one record a line; bytes go in as they are."""
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records))
    return path


def document(number: int) -> dict[str, object]:
    """A document of its own: no thirteen words of it stand in another."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    words = [
        f"The {subject} {number}:{place} is told of in part {place * number} here." for place in range(6 + number % 5)
    ]
    return {"id": f"d{number}", "text": " ".join(words), "year": 2000 + number}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return json_lines(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", *map(document, range(40)))


@pytest.fixture(scope="session")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    ok("tokenizer", "train", corpus, "--out", path, "--vocab-size", 500)
    return path


@pytest.fixture(scope="session")
def empty(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "db"
    ok("init", path, "--tokenizer", tokenizer, "--chunk-tokens", 16, "--encoder", "hashing:32")
    return path


@pytest.fixture(scope="session")
def testset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One item that is a document, one that a document contains half of, one of its own."""
    whole, half = str(document(3)["text"]), str(document(4)["text"])
    other = " ".join(f"unheard{n}" for n in range(40))
    items = [whole, half[: len(half) // 2] + " " + other, other]
    return json_lines(
        tmp_path_factory.mktemp("testset") / "exam.jsonl", *({"id": f"t{n}", "text": t} for n, t in enumerate(items))
    )


@pytest.fixture(scope="session")
def built(empty: Path, corpus: Path, testset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that has seen every stage; tests only read it."""
    path = tmp_path_factory.mktemp("built") / "db"
    shutil.copytree(empty, path)
    ok("ingest", path, corpus, "--source", "made", "--workers", 1)
    ok("dedup", path, "--against", testset, "--workers", 1)
    ok("queries", "add", path, testset, "--name", "exam")
    ok("embed", path, "--workers", 1)
    ok("index", path, "--workers", 1)
    ok("neighbours", path, "--workers", 1)
    ok("neighbours", path, "--queries", "exam", "--workers", 1)
    return path


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies of a database that a test may change."""

    def copy(source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / "db"))

    return copy
