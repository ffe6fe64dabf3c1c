"""A database in the stores that others wrote: the same answers and bytes as in a directory, or no database at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from other_stores import is_installed, started

import retrodb
from retrodb.errors import RetroDBError
from retrodb.store.object_client import ObjectClient

from .test_object_store import DOCUMENTS, LATER, Inputs, compare


@pytest.fixture
def inputs(tmp_path: Path, made_tokenizer: Path) -> Inputs:
    made = Inputs(tmp_path, made_tokenizer)
    made.write()
    return made


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Starts a store, and gives the URL of an empty bucket in it."""
    with ExitStack() as stack:

        def begin(name: str) -> str:
            if not is_installed(name):
                pytest.skip(f"{name} is not installed: make stores")
            (tmp_path / name).mkdir()
            url, variables = stack.enter_context(started(name, tmp_path / name))
            for variable, value in variables.items():
                monkeypatch.setenv(variable, value)
            return url

        yield begin


@pytest.mark.parametrize("name", ["radosgw", "azurite"])
def test_a_database_is_created_and_read_again(name: str, start: Callable[[str], str], inputs: Inputs) -> None:
    db = retrodb.create(f"{start(name)}/db", tokenizer=str(inputs.tokenizer), encoder="hashing:32")
    db.ingest([inputs.folder / "docs.jsonl"], source="made")
    db.ingest([inputs.folder / "later.jsonl"], source="later")
    assert db.stats().num_documents == len(DOCUMENTS) + len(LATER)
    assert not db.check(read_data=True).damaged


@pytest.mark.soak
@pytest.mark.parametrize("name", ["radosgw", "azurite"])
def test_a_database_has_the_answers_and_bytes_of_one_in_a_directory(
    name: str, start: Callable[[str], str], inputs: Inputs, tmp_path: Path
) -> None:
    compare(str(tmp_path / "local"), f"{start(name)}/db", inputs, workers=2)


def test_a_store_that_accepts_a_second_creation_is_refused(start: Callable[[str], str], inputs: Inputs) -> None:
    bucket = start("s3rver")
    with pytest.raises(RetroDBError, match="ignores conditions of writes") as caught:
        retrodb.create(f"{bucket}/db", tokenizer=str(inputs.tokenizer), encoder="hashing:32")
    assert caught.value.where == f"{bucket}/db"
    assert ObjectClient(bucket).infos("") == {}
