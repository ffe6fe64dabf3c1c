"""Settings for all tests. They reach no model hub: what they need is installed or made by them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
from made_documents import made_text, write_documents
from object_server import ObjectServer, moto_server

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database

# Before any test imports a Hugging Face library, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell that runs the tests in the background lets them ignore Ctrl-C. Tests send it, also to processes that inherit this.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that does other work too makes inputs slowly; that says nothing about the code.
hypothesis.settings.register_profile("loaded", suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("loaded")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many faults of storage the tests injected, also where other processes ran them."""
    from faulty_storage import SURVIVED

    passed = terminalreporter.stats.get("passed", [])
    counts = [int(value) for report in passed for name, value in report.user_properties if name == SURVIVED]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} {SURVIVED}, in {len(counts)} commands")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test remembers anything for another one."""
    monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def _moto() -> Iterator[ObjectServer]:
    with moto_server() as server:
        yield server


@pytest.fixture
def object_server(_moto: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A store that speaks the protocol of S3; the environment has its address and made-up credentials."""
    _moto.begin()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in _moto.environment.items():
        monkeypatch.setenv(name, value)
    yield _moto
    _moto.begin()


@pytest.fixture
def store_url(object_server: ObjectServer) -> str:
    """A place for a database in a new bucket."""
    return f"s3://{object_server.new_bucket()}/db"


@pytest.fixture(scope="session")
def made_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of the made words."""
    path = tmp_path_factory.mktemp("made") / "tokenizer.json"
    train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(path)
    return path


@pytest.fixture
def make_database(tmp_path: Path, made_tokenizer: Path) -> Callable[..., Database]:
    """Makes a database of documents by id, with a hashing encoder of 32 dimensions."""

    def make(documents: Mapping[str, str], name: str = "db") -> Database:
        database = retrodb.create(tmp_path / name, tokenizer=str(made_tokenizer), encoder="hashing:32")
        if documents:
            database.ingest([write_documents(tmp_path / f"{name}.jsonl", documents)], source="made")
        return database

    return make
