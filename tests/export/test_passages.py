"""The formats of passages: every text that comes back is the database's, and nothing stands where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from retrodb.database import Database

from .conftest import live_ids, remove


def lines(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_dpr_has_a_question_with_k_contexts_for_every_row(exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to="dpr")
    records = lines(tmp_path / "out" / "train.jsonl")
    table = exportable.neighbour_table()
    chunks, rows = table.view.chunks, table.rows()
    ids, distances = table.read(rows)
    assert [record["question"] for record in records] == chunks.texts(rows)
    for record, near, apart in zip(records, ids, distances, strict=True):
        texts, following = chunks.texts(near), chunks.texts(chunks.continuation(near))
        contexts = record["ctxs"]
        assert [context["text"] for context in contexts] == [a + b for a, b in zip(texts, following, strict=True)]
        assert [context["id"] for context in contexts] == [str(i) for i in near]
        scores = [context["score"] for context in contexts]
        assert scores == sorted(scores, reverse=True)
        assert np.allclose(scores[: int((near >= 0).sum())], -apart[near >= 0])
    assert any(context["text"] == "" for record in records for context in record["ctxs"]), "some row is starved"


def test_the_answer_to_a_key_is_its_whole_value(exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to="dpr")
    records = lines(tmp_path / "out" / "train.jsonl")
    table = exportable.neighbour_table()
    documents = table.view.chunks.documents(table.rows())
    keys = 0
    for record, document, row in zip(records, documents, table.rows().tolist(), strict=True):
        if document["num_key_chunks"]:
            keys += 1
            first, end = (document["first_chunk"] + document[name] for name in ("num_key_chunks", "num_chunks"))
            assert record["answers"] == ["".join(table.view.chunks.texts(np.arange(first, end)))]
        else:
            following = table.view.chunks.texts(table.view.chunks.continuation(np.array([row])))
            assert record["answers"] == [text for text in following if text]
    assert keys


def test_atlas_passages_keep_their_lines(
    make_exportable: Callable[[], Database], source_texts: dict[str, str], tmp_path: Path
) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="atlas")
    ids = live_ids(database)
    chunks = database.view().chunks
    before = lines(out / "passages.jsonl")
    assert [passage["id"] for passage in before] == [str(i) for i in ids]
    assert [passage["text"] for passage in before] == chunks.texts(np.array(ids))
    assert before[0]["title"] == chunks.documents(np.array(ids[:1]))[0]["doc_id"]
    remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
    database.refresh_export(out)
    after = lines(out / "passages.jsonl")
    alive = set(live_ids(database))
    assert [passage["id"] for passage in after] == [str(i) for i in ids]
    for i, old, new in zip(ids, before, after, strict=True):
        assert new["text"] == (old["text"] if i in alive else "")
