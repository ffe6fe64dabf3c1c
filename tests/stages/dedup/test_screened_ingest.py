"""Ingest with screening: one snapshot, no leaking document visible in any, whatever is committed or breaks meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_storage import SURVIVED, Crash, FaultyStorage, faults_of
from made_documents import made_text, write_documents
from made_up import CLOCK

import retrodb
from retrodb.config import IngestParams
from retrodb.database import Database
from retrodb.engine.progress import Bar
from retrodb.engine.run import Engine, Run
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.errors import RetroDBError
from retrodb.stages.context import Context
from retrodb.stages.dedup.command import screen_new_shards
from retrodb.stages.dedup.screened_ingest import run_screened_ingest
from retrodb.stages.ingest.command import run_ingest
from retrodb.store import commit
from retrodb.store.storage import LocalStorage

from .test_dedup import live_documents

Make = Callable[..., Database]

EXAM, QUIZ = made_text(1000, 60), made_text(2000, 60)
PART = " ".join(QUIZ.split()[:20])


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.store.storage._sync_file", lambda path: None)


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Documents, two test sets, of which one works at chunk level, and held-out documents."""
    database = make_database({})
    documents = {f"d{n}": made_text(n, 40) for n in range(12)} | {"part": f"{made_text(50, 90)} {PART}"}
    database.ingest([write_documents(tmp_path / "first.jsonl", documents)], source="made", holdout=0.3)
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"e": EXAM})])
    quiz = write_documents(tmp_path / "quiz.jsonl", {"q": QUIZ})
    database.dedup([quiz], rule="containment>=0.9", level="chunk")
    assert {info.testset for info in database.testsets()} == {"exam", "quiz", "heldout"}
    return database


def later_documents(database: Database) -> dict[str, str]:
    """New documents of another source: clean ones, and for each test set one that leaks it."""
    view = database.view()
    held_out = view.query_set("heldout")
    [text, *_] = held_out.texts(np.arange(held_out.end))
    [document, *_] = held_out.documents(np.array([0]))
    assert document is not None
    whole = "".join(held_out.texts(np.arange(document["num_chunks"]))) or text
    clean = {f"clean{n}": made_text(100 + n, 50) for n in range(7)}
    return {**clean, "exam-copy": EXAM, "quiz-copy": f"{made_text(60, 30)} {QUIZ}", "heldout-copy": whole}


def copied(database: Database, path: Path) -> Database:
    return retrodb.open(shutil.copytree(database.path, path))


def what_readers_see(database: Database) -> dict[str, object]:
    """Live documents, deletions by reason, reports and screening, by ids."""
    view = database.view()
    masks = view.chunks.tombstones.deleted_by_reason(0, view.chunks.end)
    return {
        "chunks": view.chunks.texts(np.arange(view.chunks.end)),
        "deleted": {reason: np.flatnonzero(mask).tolist() for reason, mask in masks.items()},
        "leaks": database.leaks(),
        "testsets": database.testsets(),
        "screened": view.screened_mask(0, view.chunks.end).tolist(),
        "inputs": sorted(record.name for record in view.manifest.files("inputs")),
        "entries": {key for key in view.snapshot.entries if not key.startswith("source/")},
        "stats": replace(database.stats(), database="", snapshot=0, size_bytes=0, files=()),
    }


def num_unscreened(database: Database) -> int:
    """Pairs of a test set and a shard that were not compared yet."""
    view = database.view()
    return sum(len(view.unscreened_shards(info.testset)) for info in database.testsets())


def ingest_in_two_steps(database: Database, files: Sequence[Path], params: IngestParams) -> None:
    """Commit the documents first, and screen them after that."""
    context = Context(LocalStorage(database.path))
    run_ingest(context, [str(file) for file in files], params)
    screen_new_shards(context)


def leaking(database: Database) -> set[str]:
    """Live documents that have all words of a test item."""
    texts = {doc_id: text for doc_id, text in live_texts(database.view()).items() if EXAM in text or QUIZ in text}
    return set(texts)


def live_texts(view: Any) -> dict[str, str]:
    ids = np.flatnonzero(view.chunks.live_mask(0, view.chunks.end))
    texts: dict[str, str] = {}
    for document, text in zip(view.chunks.documents(ids), view.chunks.texts(ids), strict=True):
        texts[document["doc_id"]] = texts.get(document["doc_id"], "") + text
    return texts


def test_ingest_and_screening_make_one_snapshot_and_equal_two_steps(database: Database, tmp_path: Path) -> None:
    later = later_documents(database)
    other = copied(database, tmp_path / "other")
    file = write_documents(tmp_path / "later.jsonl", later)
    before = database.view().snapshot.number
    result = database.ingest([file], source="later", holdout=0.2)
    head = database.view().snapshot
    assert (head.number, head.command, result.snapshot) == (before + 1, "ingest", before + 1)
    assert result.num_held_out == 1
    assert not leaking(database)
    assert not live_documents(database) & {"exam-copy", "heldout-copy"}
    assert num_unscreened(database) == 0
    assert head.counts["screened_documents"] > 0
    assert head.counts["added"] == result.num_added
    ingest_in_two_steps(other, [file], IngestParams("later", holdout=0.2))
    assert other.view().snapshot.number > before + 2
    assert what_readers_see(database) == what_readers_see(other)
    assert database.check(read_data=True).damaged == ()
    # Nothing is left to do for any later command.
    assert database.ingest([file], source="later", holdout=0.2).snapshot == head.number
    assert [result.num_documents for result in database.dedup()] == [0, 0, 0]
    assert database.view().snapshot.number == head.number


def test_the_first_ingest_with_a_holdout_registers_its_documents_in_the_same_snapshot(
    make_database: Make, tmp_path: Path
) -> None:
    database = make_database({})
    texts = {f"d{n}": made_text(n % 10, 40) for n in range(20)}  # each text twice
    result = database.ingest([write_documents(tmp_path / "in.jsonl", texts)], source="made", holdout=0.4)
    assert result.snapshot == database.view().snapshot.number == 1
    held_out = live_texts_of_queries(database)
    assert 0 < len(held_out) <= result.num_held_out
    assert not set(live_texts(database.view()).values()) & held_out
    assert [info.testset for info in database.testsets()] == ["heldout"]


def live_texts_of_queries(database: Database) -> set[str]:
    held_out = database.view().query_set("heldout")
    texts: dict[int, str] = {}
    ids = np.arange(held_out.end)
    for document, text in zip(held_out.document_ids(ids).tolist(), held_out.texts(ids), strict=True):
        texts[document] = texts.get(document, "") + text
    return set(texts.values())


def test_dedup_finishes_what_an_ingest_left_unscreened(database: Database, tmp_path: Path) -> None:
    other = copied(database, tmp_path / "other")
    later = later_documents(database)
    file = write_documents(tmp_path / "later.jsonl", later)
    context = Context(LocalStorage(other.path))
    run_ingest(context, [str(file)], IngestParams("later"))
    assert leaking(other)
    assert sum(result.num_removed_documents for result in other.dedup()) > 0
    assert not leaking(other)
    database.ingest([file], source="later")
    assert what_readers_see(database) == what_readers_see(other)


def test_an_ingest_screens_what_another_one_left_unscreened(database: Database, tmp_path: Path) -> None:
    file = write_documents(tmp_path / "later.jsonl", later_documents(database))
    run_ingest(Context(LocalStorage(database.path)), [str(file)], IngestParams("later"))
    assert leaking(database)
    database.ingest([file], source="later")  # nothing new
    assert not leaking(database)
    run_ingest(Context(LocalStorage(database.path)), [str(file)], IngestParams("again"))
    assert leaking(database)
    before = database.view().snapshot.number
    database.ingest([write_documents(tmp_path / "more.jsonl", {"x": made_text(300, 30)})], source="more")
    assert database.view().snapshot.number == before + 1
    assert not leaking(database)


def before_next_publication(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Run an action when the next commit is prepared and is going to publish its snapshot."""
    publish = commit._publish

    def late(*arguments: Any) -> bool:
        monkeypatch.setattr(commit, "_publish", publish)
        action()
        return publish(*arguments)

    monkeypatch.setattr(commit, "_publish", late)


class Counting(Engine):
    """Counts the tasks that are executed, by stage, and is killed after some of them."""

    def __init__(self, left: int = 10**6) -> None:
        self.left = left
        self.executed: list[str] = []

    def execute(
        self,
        run: Run,
        tasks: Sequence[Task[P, R]],
        function: TaskFunction[P, R],
        bar: Bar,
        *,
        isolated: bool = False,
        extra_bytes: int = 0,
    ) -> Iterable[tuple[Task[P, R], TaskRecord[R]]]:
        for task, record in super().execute(run, tasks, function, bar, isolated=isolated):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.executed.append(task.kind.stage)
            yield task, record


def test_two_concurrent_ingests_both_succeed_with_tombstones_under_their_own_ids(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = later_documents(database)
    one = write_documents(tmp_path / "one.jsonl", later)
    other = write_documents(tmp_path / "other.jsonl", {"o1": made_text(400, 60), "o2": f"{EXAM}", "o3": QUIZ})
    alone = copied(database, tmp_path / "alone")
    before = database.view().snapshot.number
    before_next_publication(
        monkeypatch, lambda: retrodb.open(database.path).ingest([other], source="other", holdout=0.0)
    )
    engine = Counting()
    context = replace(Context(LocalStorage(database.path)), engine=engine)
    result = run_screened_ingest(context, [str(one)], IngestParams("one"))
    assert result.snapshot == database.view().snapshot.number == before + 2
    assert [entry.command for entry in database.snapshots()[-2:]] == ["ingest", "ingest"]
    assert engine.executed.count("leak-scan") == 3, "the scans are used again under other ids"
    assert not leaking(database)
    assert live_documents(database) >= {"clean0", "clean1", "o1"}
    for source in ("other", "one"):  # one after the other
        alone.ingest([{"one": one, "other": other}[source]], source=source)
    assert what_readers_see(database) == what_readers_see(alone)
    assert database.check(read_data=True).damaged == ()


def test_an_ingest_overtaken_by_another_version_of_a_test_set_is_screened_with_that_version(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made_text(77, 60)
    new_exam = write_documents(tmp_path / "new-exam.jsonl", {"n": text})
    later = write_documents(tmp_path / "later.jsonl", {"old": EXAM, "new": text})
    before = database.view().snapshot.number
    before_next_publication(monkeypatch, lambda: retrodb.open(database.path).dedup([new_exam], name="exam"))
    database.ingest([later], source="later")
    assert database.view().snapshot.number == before + 2
    assert live_documents(database) & {"old", "new"} == {"old"}
    assert num_unscreened(database) == 0
    assert {hit.doc_id for hit in database.leaks("exam")} == {"new"}


def seen(root: Path) -> dict[str, bytes]:
    """The snapshots and all files that the newest one names."""
    view = retrodb.open(root).view()
    paths = [record.path for record in view.manifest.all_files()]
    return {path: (root / path).read_bytes() for path in [*paths, *view.storage.list("snapshots")]}


def test_killed_after_any_task_it_continues_and_ends_in_the_same_bytes(database: Database, tmp_path: Path) -> None:
    file = write_documents(tmp_path / "later.jsonl", later_documents(database))
    params = IngestParams("later", holdout=0.2)

    def ingest(path: Path, engine: Engine) -> None:
        context = Context(LocalStorage(path), engine=engine, clock=CLOCK)
        run_screened_ingest(context, [str(file)], params)

    whole = Counting()
    ingest(Path(copied(database, tmp_path / "whole").path), whole)
    assert {"leak-scan", "leak-clean"} <= set(whole.executed)
    for left in range(len(whole.executed)):
        path = Path(copied(database, tmp_path / f"killed-{left}").path)
        with pytest.raises(KeyboardInterrupt):
            ingest(path, Counting(left))
        assert retrodb.open(path).view().snapshot.number == database.view().snapshot.number
        ingest(path, Counting())
        assert seen(path) == seen(tmp_path / "whole"), f"killed after {left} tasks"


def test_a_fault_leaves_the_old_or_the_new_version_and_can_be_continued(
    make_database: Make, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    database = make_database({"a": made_text(2, 30)})
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"e": EXAM})])
    file = write_documents(tmp_path / "later.jsonl", {"b": EXAM, "c": made_text(3, 30)})
    base = Path(database.path)

    def run(storage: LocalStorage | FaultyStorage) -> None:
        retrodb.open(storage, clock=CLOCK).ingest([file], source="later")

    counting = FaultyStorage(LocalStorage(shutil.copytree(base, tmp_path / "counted")))
    run(counting)
    old, new = seen(base), seen(tmp_path / "counted")
    assert old != new
    faults = [(at, fault) for at, (name, _) in enumerate(counting.operations) for fault in faults_of(name)]
    for at, fault in faults:
        storage = LocalStorage(shutil.copytree(base, tmp_path / f"{at}-{fault}"))
        with suppress(RetroDBError, Crash):
            run(FaultyStorage(storage, at, fault))
        assert seen(storage.root) in (old, new), (at, fault)
        run(storage)
        assert seen(storage.root) == new, (at, fault)
        shutil.rmtree(storage.root)
    record_property(SURVIVED, len(faults))


def test_documents_that_a_changed_holdout_gives_back_can_be_read_again(make_database: Make, tmp_path: Path) -> None:
    """A compaction dropped them, so the list of files that were read must go, that of the same ingest too."""
    database = make_database({})
    texts: Mapping[str, str] = {f"d{n}": made_text(n % 10, 40) for n in range(20)}
    file = write_documents(tmp_path / "in.jsonl", texts)
    database.ingest([file], source="made", holdout=0.4)
    database.compact()
    other = copied(database, tmp_path / "other")
    held_out = {document["doc_id"] for document in held_out_rows(database)}
    removed = next(name for name in held_out if f"d{(int(name[1:]) + 10) % 20}" not in held_out)  # its twin is deleted
    fewer = write_documents(tmp_path / "in.jsonl", {key: text for key, text in texts.items() if key != removed})
    database.ingest([fewer], source="made", mirror=True, holdout=0.4)
    ingest_in_two_steps(other, [fewer], IngestParams("made", mirror=True, holdout=0.4))
    assert what_readers_see(database) == what_readers_see(other)
    assert database.view().manifest.files("inputs") == []
    twin = f"d{(int(removed[1:]) + 10) % 20}"
    assert twin not in live_documents(database)
    database.ingest([fewer], source="made", holdout=0.4)
    assert twin in live_documents(database)


def held_out_rows(database: Database) -> list[dict[str, Any]]:
    held_out = database.view().query_set("heldout")
    return [document for document in held_out.documents(np.arange(held_out.end)) if document]
