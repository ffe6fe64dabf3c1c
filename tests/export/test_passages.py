"""The formats of passages: every text that comes back is the database's, and nothing stands where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
from made_documents import made_text

from retrodb.database import Database

from .conftest import K, live_ids, remove


def lines(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def targets(exportable: Database) -> dict[int, str]:
    """Live rows with what follows them: the whole value of a key, and the next chunk of any other row."""
    table = exportable.neighbour_table()
    chunks, rows = table.view.chunks, table.rows()
    following = {}
    for document, row in zip(chunks.documents(rows), rows.tolist(), strict=True):
        ids = chunks.continuation(np.array([row]))
        if document["num_key_chunks"]:
            first, end = (document["first_chunk"] + document[name] for name in ("num_key_chunks", "num_chunks"))
            ids = np.arange(first, end)
        if text := "".join(chunks.texts(ids)):
            following[row] = text
    assert 0 < len(following) < len(rows)
    return following


def test_dpr_has_k_contexts_and_an_answer_for_every_row_with_a_target(exportable: Database, tmp_path: Path) -> None:
    result = exportable.export(tmp_path / "out", to="dpr")
    records = orjson.loads((tmp_path / "out" / "train.json").read_bytes())
    table, answers = exportable.neighbour_table(), targets(exportable)
    chunks, rows = table.view.chunks, np.array(list(answers))
    assert result.num_rows_without_target == result.num_rows - len(rows)
    ids, distances = table.read(rows)
    assert [record["question"] for record in records] == chunks.texts(rows)
    assert [record["answers"] for record in records] == [[text] for text in answers.values()]
    for record, near, apart in zip(records, ids, distances, strict=True):
        texts, following = chunks.texts(near), chunks.texts(chunks.continuation(near))
        contexts = record["ctxs"]
        # A value is a text of its own, and a blank separates it from its key.
        blanks = [
            " " if document and i + 1 == document["first_chunk"] + document["num_key_chunks"] else ""
            for i, document in zip(near.tolist(), chunks.documents(near), strict=True)
        ]
        assert [context["text"] for context in contexts] == [
            text + blank + more for text, blank, more in zip(texts, blanks, following, strict=True)
        ]
        assert [context["id"] for context in contexts] == [str(i) for i in near]
        scores = [context["score"] for context in contexts]
        assert scores == sorted(scores, reverse=True)
        assert np.allclose(scores[: int((near >= 0).sum())], -apart[near >= 0])
        assert [context["similarity"] for context in contexts] == [
            None if i < 0 else score for i, score in zip(near, scores, strict=True)
        ]
    assert any(context["text"] == "" for record in records for context in record["ctxs"]), "some row is starved"


def test_a_retriever_is_trained_on_the_neighbours_that_there_are(exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to="dpr", contexts="positive_ctxs")
    records = orjson.loads((tmp_path / "out" / "train.json").read_bytes())
    table, rows = exportable.neighbour_table(), np.array(list(targets(exportable)))
    for record, near in zip(records, table.read(rows)[0], strict=True):
        assert [context["id"] for context in record["positive_ctxs"]] == [str(i) for i in near if i >= 0]
        assert record["negative_ctxs"] == record["hard_negative_ctxs"] == []
        assert "ctxs" not in record


def test_a_refresh_removes_the_deleted_end_of_a_value(make_exportable: Callable[[], Database], tmp_path: Path) -> None:
    database, out, value = make_exportable(), tmp_path / "out", made_text("long value", 250)
    (tmp_path / "pair.json").write_bytes(orjson.dumps({"id": "long", "key": made_text("key", 30), "value": value}))
    database.ingest([tmp_path / "pair.json"], source="long", key_field="key", value_field="value")
    database.embed()
    database.index()
    database.neighbours(k=K, spare_neighbours=2)
    database.export(out, to="dpr")
    before = targets(database)
    remove(database, tmp_path, {"end": value[-150:]}, "chunk")
    after = targets(database)
    assert before.keys() == after.keys()
    [changed] = [row for row, text in after.items() if text != before[row]]
    assert before[changed].startswith(after[changed])
    assert database.refresh_export(out).changed == ("train.json",)
    records = orjson.loads((out / "train.json").read_bytes())
    assert [record["answers"] for record in records] == [[text] for text in after.values()]


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
