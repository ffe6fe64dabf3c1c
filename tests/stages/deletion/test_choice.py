"""Filters choose by shard what a plain look at every document chooses, and plan without any document."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faulty_storage import FaultyStorage
from made_documents import made_text, write_documents
from made_up import CLOCK

import retrodb
from retrodb.config import TagParams
from retrodb.database import Database, DocumentName
from retrodb.errors import UsageError
from retrodb.format.rows import deserialize_rows
from retrodb.stages.deletion import choice as module
from retrodb.stages.deletion.choice import Choice, plan_choice
from retrodb.stages.deletion.tag import plan_tag
from retrodb.store.storage import LocalStorage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import View

TEXTS = {f"d{n}": made_text(n, 10 + 40 * (n % 4)) + " xbadx" * (n % 3 == 0) for n in range(24)}


@pytest.fixture
def database(make_database: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Three sources in many small shards; some names are in two sources, and some documents have older versions."""
    for name in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{name}.MAX_SHARD_CHUNKS", 6)
    database = make_database(TEXTS)
    for source, first in (("more", 20), ("other", 40)):
        texts = {f"d{n}": made_text(n, 60) + " xbadx" * (n % 2) for n in range(first, first + 8)}
        database.ingest([write_documents(tmp_path / f"{source}.jsonl", texts)], source=source)
    database.ingest([write_documents(tmp_path / "new.jsonl", {"d3": "a new text", "d8": "xbadx again"})], source="made")
    assert len(database.view().shards) > 8
    return database


def chunks_of(database: Database, keep: Callable[[str, str, str], bool]) -> dict[int, tuple[str, str]]:
    """The live chunks of the documents to keep, by a look at every document: id -> source and id of its document."""
    view = database.view()
    ids = np.arange(view.chunks.end)
    live, documents, first = view.chunks.is_live(ids), view.chunks.documents(ids), view.chunks.document_ids(ids)
    texts: dict[int, str] = {}
    for id_, text in zip(first.tolist(), view.chunks.texts(ids, deleted_too=True), strict=True):
        texts[id_] = texts.get(id_, "") + text
    return {
        id_: (document["source"], document["doc_id"])
        for id_, document in zip(ids.tolist(), documents, strict=True)
        if live[id_] and document and keep(document["source"], document["doc_id"], texts[int(first[id_])])
    }


WHERE = {None: lambda text: True, "text like '%xbadx%'": lambda text: "xbadx" in text, "false": lambda text: False}
NAMES = {None: None, "names": [*(f"d{n}" for n in range(15)), "none"]}
CHOICES = [c for c in itertools.product(WHERE, NAMES, (None, "made", "more")) if any(x is not None for x in c)]


@pytest.mark.parametrize(("where", "names", "source"), CHOICES)
def test_shards_choose_together_what_all_documents_choose(
    database: Database, where: str | None, names: str | None, source: str | None
) -> None:
    doc_ids = NAMES[names]

    def is_chosen(of_source: str, doc_id: str, text: str) -> bool:
        return WHERE[where](text) and (doc_ids is None or doc_id in doc_ids) and source in (None, of_source)

    expected = chunks_of(database, is_chosen)
    left = chunks_of(database, lambda *document: not is_chosen(*document))
    given = {"where": where, "doc_ids": doc_ids, "source": source}
    dry = database.filter(**given, dry_run=True)  # type: ignore[arg-type]
    result = database.filter(**given)  # type: ignore[arg-type]
    assert (dry.num_documents, dry.num_chunks) == (result.num_documents, result.num_chunks)
    assert dry.num_documents_by_source == result.num_documents_by_source
    assert sum(result.num_documents_by_source.values()) == result.num_documents
    assert chunks_of(database, lambda *_: True) == left
    if doc_ids is None:  # names also choose documents that are deleted already
        assert result.num_chunks == len(expected)
        assert result.num_documents == len(set(expected.values()))
    assert len(dry.sample) == min(8, dry.num_documents)
    if result.num_chunks:
        back = database.undelete("filter", **given)  # type: ignore[arg-type]
        assert (back.num_documents, back.num_chunks) == (result.num_documents, result.num_chunks)
        assert chunks_of(database, lambda *_: True) == left | expected


def test_the_sample_is_distributed_over_all_documents(database: Database) -> None:
    view = database.view()
    documents = [d for d in view.chunks.documents(np.arange(view.chunks.end)) if d]
    live = {d["first_chunk"] for d in documents if view.chunks.is_live(np.array([d["first_chunk"]]))[0]}
    expected = [sorted(live)[p] for p in np.linspace(0, len(live) - 1, 8).astype(int)]
    named = {d["first_chunk"]: (d["source"], d["doc_id"]) for d in documents}
    sample = database.filter(where="true", dry_run=True).sample
    assert [(document.source, document.doc_id) for document in sample] == [named[first] for first in expected]


def test_other_processes_give_the_same_bytes(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("retrodb.stages.context._CHUNKS_OF_ONE_PROCESS", 0)
    for name in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{name}.MAX_SHARD_CHUNKS", 8)
    digests = []
    for name, workers in (("one", 1), ("two", 2)):
        database = retrodb.open(make_database(TEXTS, name).path, workers=workers, clock=CLOCK)
        database.filter(where="text like '%xbadx%'")
        with pytest.raises(UsageError, match="condition: "):
            database.filter(where="cast(text as int) > 1")
        digests.append([record.digest for record in database.view().manifest.files("tombstones")])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 1


def stored_files(database: Database) -> list[str]:
    return [path for path in database.view().storage.list("") if not path.startswith("locks/")]


def forbid_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything fail that reads documents."""

    def fail(*arguments: object) -> None:
        raise AssertionError("read documents")

    for name in ("_read_layout", "_read_deleted_mask", "_read_documents", "present_mask", "is_live"):
        monkeypatch.setattr(ChunkSet, name, fail)


def test_a_condition_is_planned_without_any_document(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FaultyStorage(LocalStorage(database.path))
    context = Database(storage)
    view = context.view()
    assert len(view.shards) > 8
    forbid_rows(monkeypatch)
    before = len(storage.operations)
    planned = plan_choice(context._context, view, Choice("text like '%xbadx%'", source="made"), "filter")
    assert len(planned.payloads) == view.shards.source.count("made")
    read = [path for _, path in storage.operations[before:]]
    assert not [path for path in read if path.startswith(("documents", "chunks", "ids", "tokens"))]


def test_a_tagger_is_planned_by_the_manifest(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.tag("bad", regex="xbadx")
    storage = FaultyStorage(LocalStorage(database.path))
    view = Database(storage).view()
    assert len(view.shards) > 8
    forbid_rows(monkeypatch)
    before = len(storage.operations)
    tagged = plan_tag(view, "bad", TagParams(regex="xbadx"))
    assert len(tagged.payloads) == len(view.shards)
    num_superseded = sum(tagged.num_unscored)
    assert num_superseded == 2
    assert sum(plan_tag(view, "new", TagParams(regex="xbadx")).num_unscored) == view.shards.num_documents.sum()
    read = [path for _, path in storage.operations[before:]]
    assert not [path for path in read if path.startswith(("documents", "chunks", "ids", "tokens", "attributes"))]


def test_a_dry_run_of_a_tagger_counts_and_leaves_no_run(database: Database) -> None:
    database.filter(where="text like '%xbadx%'")
    files = stored_files(database)
    dry = database.tag("bad", regex="xbadx", dry_run=True)
    assert stored_files(database) == files
    assert database.tag("bad", regex="xbadx").num_documents == dry.num_documents > 0
    database.undelete("filter")
    files = stored_files(database)
    again = database.tag("bad", regex="xbadx", dry_run=True)
    assert (again.num_tagged_before, again.dry_run) == (dry.num_documents, True)
    assert stored_files(database) == files
    result = database.tag("bad", regex="xbadx")
    assert (result.num_documents, result.num_positive) == (again.num_documents, again.num_documents)
    assert result.max_score > 0
    files = stored_files(database)
    assert database.tag("bad", regex="xbadx").num_tagged_before == result.num_documents + result.num_tagged_before
    assert stored_files(database) == files


def test_names_are_looked_up_by_their_keys(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    view = database.view()
    unknown = Choice(doc_ids=["no such document", DocumentName("d0", "more")])
    forbid_rows(monkeypatch)
    planned = plan_choice(database._context, view, unknown, "filter")
    assert planned.payloads == ()
    assert len(planned.unknown_names) == 2


def test_short_and_long_lists_of_names_find_the_same(database: Database) -> None:
    doc_ids, unknown = [f"d{n}" for n in range(15)], [f"no document {n}" for n in range(1000)]
    short, long = (
        plan_choice(database._context, database.view(), Choice(doc_ids=names), "filter")
        for names in (doc_ids, [*unknown, *doc_ids])
    )
    assert short.payloads == long.payloads
    assert (short.unknown_names, long.unknown_names) == ((), tuple(unknown))
    named = [deserialize_rows(payload.named) for payload in short.payloads if payload.named]
    assert sum(map(len, named)) == len(doc_ids) + 2  # two have an older version


def test_only_shards_of_the_named_documents_get_a_task(database: Database) -> None:
    view = database.view()
    planned = plan_choice(database._context, view, Choice(doc_ids=[DocumentName("d47", "other")]), "filter")
    [payload] = planned.payloads
    [document] = [d for d in view.chunks.documents(np.arange(*_bounds(view, payload))) if d and d["doc_id"] == "d47"][
        :1
    ]
    assert document["source"] == "other"


def _bounds(view: View, payload: module.ChoicePayload) -> tuple[int, int]:
    return payload.shard.first_chunk, payload.shard.end


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_command_that_deletes_nothing_leaves_no_run(database: Database, dry_run: bool) -> None:
    before = stored_files(database)
    database.filter(where="false", dry_run=dry_run)
    database.filter(doc_ids=["unknown"], dry_run=dry_run)
    database.filter(where="true", dry_run=True)
    with pytest.raises(UsageError, match="condition: "):
        database.filter(where="cast(text as int) > 1", dry_run=dry_run)
    assert stored_files(database) == before


def test_a_document_whose_first_chunk_is_gone_is_found_by_its_name(
    make_database: Callable[..., Database], tmp_path: Path
) -> None:
    texts = {"whole": made_text(1, 200), "cut": made_text(2, 200)}
    database = make_database(texts)
    view = database.view()
    first_chunk = view.chunks.texts(view.chunks.document_ids(np.arange(view.chunks.end)))
    [cut] = {text for text in first_chunk if texts["cut"].startswith(text)}
    leaked = write_documents(tmp_path / "exam.jsonl", {"exam": cut})
    database.dedup([leaked], rule="containment>=0.5", level="chunk")
    database.compact(min_deleted=0)
    view = database.view()
    documents = view.chunks.documents(np.flatnonzero(view.chunks.live_mask(0, view.chunks.end)))
    num_left = sum(document["doc_id"] == "cut" for document in documents if document)
    assert 0 < num_left < len(documents) / 2, "its first chunk was dropped, and others were not"
    result = database.filter(doc_ids=["cut"], reason="x")
    assert (result.num_documents, result.num_chunks, result.unknown_names) == (1, num_left, ())
    assert database.undelete(reason="x").num_documents == 1
    assert database.filter(where="doc_id = 'cut'", reason="x").num_chunks == num_left
    assert not database.check(read_data=True).damaged
