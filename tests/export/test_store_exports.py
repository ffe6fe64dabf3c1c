"""Exports to an object store have the files and bytes of exports to a folder, whatever interrupts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from object_server import ObjectServer, RandomFaults

import retrodb
from retrodb.database import Database
from retrodb.errors import UsageError
from retrodb.export.card import CARD
from retrodb.export.record import RECORD
from retrodb.store.object_client import ObjectClient
from retrodb.store.object_storage import ObjectStorage

from .test_export import content, every_format

DELETED = "65-0"


@pytest.fixture
def exportable(make_exportable: Callable[[], Database]) -> Database:
    """A database that a test may change."""
    return make_exportable()


def objects(url: str) -> dict[str, bytes]:
    storage = ObjectStorage(url)
    return {path: storage.read(path) for path in storage.list("")}


def compare(folder: Path, url: str) -> None:
    """All but the card and the identity of the plan, which name the place, is equal."""
    ours, theirs = content(folder), objects(url)
    assert ours.pop(CARD) != theirs.pop(CARD)
    records = [json.loads(each.pop(RECORD)) for each in (ours, theirs)]
    assert records[0].pop("plan") != records[1].pop("plan")
    assert records[0] == records[1]
    assert ours == theirs


def is_left_over(cache: Path) -> bool:
    return any(path.is_file() for path in (cache / "exports").rglob("*"))


@every_format
def test_an_export_and_its_refresh_have_the_bytes_of_those_in_a_folder(
    name: str, exportable: Database, store_url: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    object_server.choose = RandomFaults(0.05, seed=len(name))
    for out in (tmp_path / "out", store_url):
        result = exportable.export(out, to=name)
        assert result.path == str(out)
    compare(tmp_path / "out", store_url)
    exportable.filter(doc_ids=[DELETED], reason="gone")
    dry = exportable.refresh_export(store_url, dry_run=True)
    refreshed = [exportable.refresh_export(out) for out in (tmp_path / "out", store_url)]
    assert refreshed[0].changed == refreshed[1].changed == dry.changed != ()
    assert set(refreshed[1].must_reopen) >= set(refreshed[1].changed)
    compare(tmp_path / "out", store_url)
    assert exportable.refresh_export(store_url).changed == ()
    assert not is_left_over(tmp_path / "cache")


class Killed:
    """Ends a command after a number of requests that write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 30
        for name in ("put", "delete"):
            monkeypatch.setattr(ObjectClient, name, self._counted(getattr(ObjectClient, name)))

    def _counted(self, write: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return write(*arguments, **options)

        return counted

    def repeat(self, command: Callable[[], object]) -> int:
        """Give a command again until it ends, killing it a request later each time. Gives how often it was killed."""
        kills = 0
        while True:
            self.left = kills
            try:
                command()
            except KeyboardInterrupt:
                kills += 1
            else:
                self.left = 1 << 30
                return kills


def test_a_killed_export_and_refresh_end_in_the_same_objects(
    exportable: Database, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Killed(monkeypatch)
    exportable.export(tmp_path / "out", to="arrays")
    assert killed.repeat(lambda: exportable.export(store_url, to="arrays")) >= 5
    compare(tmp_path / "out", store_url)
    exportable.filter(doc_ids=[DELETED], reason="gone")
    exportable.refresh_export(tmp_path / "out")
    assert killed.repeat(lambda: exportable.refresh_export(store_url)) >= 3
    compare(tmp_path / "out", store_url)
    assert not is_left_over(tmp_path / "cache")


def test_another_format_leaves_nothing_of_an_export_that_was_there_or_was_killed(
    exportable: Database, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Killed(monkeypatch)
    exportable.export(store_url, to="norlund")
    killed.left = 6
    with pytest.raises(KeyboardInterrupt):
        exportable.export(store_url, to="arrays")
    killed.left = 1 << 30
    assert CARD not in objects(store_url)
    with pytest.raises(UsageError, match="is no export"):
        exportable.refresh_export(store_url)
    for out in (store_url, tmp_path / "out"):
        exportable.export(out, to="parquet")
    compare(tmp_path / "out", store_url)


def test_an_export_that_another_machine_did_not_finish_leaves_no_file(
    exportable: Database, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Killed(monkeypatch)
    exportable.export(store_url, to="norlund")
    for number, name in enumerate(("arrays", "nemo", "parquet")):
        monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / f"machine {number}"))
        killed.left = 5
        with pytest.raises(KeyboardInterrupt):
            exportable.export(store_url, to=name)
    killed.left = 1 << 30
    monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / "last machine"))
    for out in (store_url, tmp_path / "out"):
        exportable.export(out, to="lucidrains")
    compare(tmp_path / "out", store_url)


def test_a_refresh_that_another_machine_did_not_finish_is_not_trusted(
    exportable: Database, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its objects have the sizes of the right ones, and what they were written from is the state before."""
    killed = Killed(monkeypatch)
    exportable.export(store_url, to="arrays")
    exportable.export(tmp_path / "out", to="arrays")
    exportable.filter(doc_ids=[DELETED], reason="gone")
    killed.left = 3
    with pytest.raises(KeyboardInterrupt):
        exportable.refresh_export(store_url)
    killed.left = 1 << 30
    exportable.undelete("gone")
    monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / "another machine"))
    exportable.refresh_export(store_url)
    exportable.refresh_export(tmp_path / "out")
    compare(tmp_path / "out", store_url)


def test_objects_of_others_are_not_touched(exportable: Database, store_url: str, tmp_path: Path) -> None:
    storage = ObjectStorage(store_url)
    storage.write("theirs.txt", b"theirs")
    with pytest.raises(UsageError, match="exists and is no export"):
        exportable.export(store_url)
    with pytest.raises(UsageError, match="is no export"):
        exportable.refresh_export(store_url)
    assert objects(store_url) == {"theirs.txt": b"theirs"}
    exportable.export(f"{store_url}/own", to="arrays")
    storage.write("own/theirs.txt", b"theirs")
    exportable.export(f"{store_url}/own", to="norlund")
    assert storage.read("own/theirs.txt") == b"theirs"


def test_an_export_is_not_written_into_a_database_in_a_store(
    exportable: Database, store_url: str, tmp_path: Path, made_tokenizer: Path
) -> None:
    for path in (store_url, tmp_path / "other"):
        retrodb.create(path, tokenizer=str(made_tokenizer), encoder="hashing:32")
    for out in (store_url, f"{store_url}/out"):
        with pytest.raises(UsageError, match=r"this place is in the database"):
            retrodb.open(store_url).export(out)


def test_update_and_the_command_line_find_an_export_by_its_url(
    exportable: Database, store_url: str, tmp_path: Path
) -> None:
    exportable.export(store_url, to="arrays")
    assert store_url in [info.path for info in exportable.exports()]
    assert retrodb.database.database_of_export(store_url) == str(Path(exportable.path).absolute())
    exportable.filter(doc_ids=[DELETED], reason="gone")
    before = objects(store_url)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("")
    exportable.update(config=recipe)
    assert objects(store_url)[RECORD] != before[RECORD]


def test_an_update_of_a_copy_leaves_the_exports_of_its_source(
    exportable: Database, store_url: str, tmp_path: Path
) -> None:
    places = [store_url, str(tmp_path / "out")]
    for out in places:
        exportable.export(out, to="arrays")
    exportable.copy_to(tmp_path / "copy")
    copy = retrodb.open(tmp_path / "copy")
    copy.filter(doc_ids=[DELETED], reason="gone")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("")
    before = objects(store_url), content(tmp_path / "out")
    result = copy.update(config=recipe)  # other tests have registered exports, too
    steps = [step for step in result.steps if step.name in places]
    assert {step.name for step in steps} == set(places)
    for step in steps:
        assert step.outcome == "nothing new"
        assert f"it belongs to {Path(exportable.path).absolute()}" in step.notes[0]
        assert step.notes[0].endswith(f"retrodb export {copy.path} {step.name} --to arrays")
    assert (objects(store_url), content(tmp_path / "out")) == before
    Path(exportable.path).rename(tmp_path / "away")  # the copy replaces it
    copy.update(config=recipe)
    assert objects(store_url) != before[0]
    assert content(tmp_path / "out") != before[1]


def test_a_file_for_faiss_needs_the_url_of_an_object(exportable: Database, store_url: str) -> None:
    for out in (store_url.removesuffix("/db"), f"{store_url}/folder/"):
        with pytest.raises(UsageError, match=r"this URL names no object\. Write the URL of the new object"):
            exportable.export_faiss(out)
