"""A new database wants an empty folder: a file of somebody else is never overwritten, collected or refused late."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retrodb
from retrodb.errors import ConflictError

FILES = (
    "tokenizer.json",
    "retrodb.toml",
    "recipe.toml",
    "chunks/thesis.pdf",
    "documents/0.parquet",
    "notes.txt",
    "snapshots/x",
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.sampled_from(FILES), min_size=1))
def test_a_folder_with_files_is_refused_and_stays_as_it_is(
    made_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("mine")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    with pytest.raises(ConflictError, match=r"not empty: it contains '.*Choose a new path or an empty folder"):
        retrodb.create(folder, tokenizer=str(made_tokenizer))
    left = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert left == {name: name.encode() for name in names}


def test_an_empty_folder_and_an_interrupted_creation_are_used(made_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    retrodb.create(tmp_path / "empty", tokenizer=str(made_tokenizer))
    database = retrodb.create(tmp_path / "db", tokenizer=str(made_tokenizer))
    storage = database._context.storage
    for path in (*storage.list("snapshots"), *storage.list("heads"), "retrodb.toml"):
        storage.delete(path)  # as if it had been killed after the tokenizer
    assert retrodb.create(tmp_path / "db", tokenizer=str(made_tokenizer)).view().snapshot.number == 0
