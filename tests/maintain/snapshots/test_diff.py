"""A diff gives the same numbers from the manifest and from the documents, and looks only at what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.store.storage import LocalStorage
from retrodb.view.view import View

Make = Callable[..., Database]


@pytest.fixture
def history(make_database: Make, tmp_path: Path) -> Database:
    """Ingests of new and changed documents, filters for several reasons, a compaction, a restore."""
    database = make_database({f"a{n}": made_text(n, 60 + 50 * (n % 4)) for n in range(7)})
    more = {f"b{n}": made_text(50 + n, 150) for n in range(5)}
    database.ingest([write_documents(tmp_path / "b.jsonl", more)], source="other")
    changed = {"a1": made_text(100, 90), "a2": made_text(101, 200), "new": made_text(102, 70)}
    database.ingest([write_documents(tmp_path / "c.jsonl", changed)], source="made")
    database.filter(doc_ids=["b1", "b2", "a3"], reason="toxic")
    database.filter(doc_ids=["b2"], reason="dull")
    database.undelete("toxic", doc_ids=["a3"])
    database.dedup([write_documents(tmp_path / "t.jsonl", {"x": made_text(53, 40)})], level="chunk")
    database.compact(min_deleted=0)
    kept = {"b0": more["b0"], "b4": made_text(104, 140)}
    database.ingest([write_documents(tmp_path / "d.jsonl", kept)], source="other", mirror=True)
    database.restore(4)
    return database


def live_documents(view: View) -> dict[int, tuple[str, str, int]]:
    """Id of the first chunk -> source, id, live chunks."""
    ids = np.arange(view.snapshot.next_chunk)
    documents = [document for document in view.chunks.documents(ids[view.chunks.is_live(ids)]) if document]
    counts = Counter(document["first_chunk"] for document in documents)
    return {d["first_chunk"]: (d["source"], d["doc_id"], counts[d["first_chunk"]]) for d in documents}


def test_rows_are_the_documents_counted(history: Database) -> None:
    head = history.view().snapshot.number
    live = {number: live_documents(history.view(number)) for number in range(head + 1)}
    for a in range(head + 1):
        for b in range(a, head + 1):
            short, long = history.diff(a, b), history.diff(a, b, documents=True)
            assert short.rows == long.rows, "numbers of the manifest, or of the documents"
            counts = Counter((d.source, d.change, d.reason) for d in long.documents)
            assert {(r.source, r.change, r.reason): r.num_documents for r in long.rows if r.num_documents} == counts
            listed = Counter((d.source, d.doc_id) for d in long.documents if d.change != "removed")
            appeared = Counter(live[b][first][:2] for first in live[b].keys() - live[a].keys())
            assert listed == appeared
            removed = Counter((d.source, d.doc_id) for d in long.documents if d.change != "added")
            assert removed == Counter(live[a][first][:2] for first in live[a].keys() - live[b].keys())
            added = sum(r.num_chunks for r in long.rows if r.change != "removed")
            gained = sum(max(n - live[a].get(f, ("", "", 0))[2], 0) for f, (_, _, n) in live[b].items())
            assert added == gained


def test_reasons_of_a_row_are_joined_and_found_before_a_compaction(history: Database) -> None:
    rows = {(r.source, r.change, r.reason): r.num_documents for r in history.diff(2, 8).rows}
    assert rows["other", "removed", "dull, toxic"] == 1
    assert rows["made", "changed", "new version"] == 2


def test_shards_that_do_not_differ_are_not_opened(history: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[str] = set()
    local = LocalStorage.local

    def recorded(self: LocalStorage, path: str) -> Path:
        opened.add(path)
        return local(self, path)

    first = {record.path for record in history.view(1).manifest.all_files()}
    second = {record.path for record in history.view(2).manifest.all_files()} - first
    monkeypatch.setattr(LocalStorage, "local", recorded)
    assert history.diff(1, 2).rows[0].num_documents == 5
    assert not {path for path in opened if path.startswith(("documents/", "ids/", "chunks/"))}
    assert history.diff(3, 4).rows
    shards = {path for path in opened if path.startswith("documents/")}
    assert shards & second
    assert len(shards) == 2, "of three shards"


def test_a_new_shard_is_counted_without_opening_it(history: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = history.diff(1, 4, documents=True)
    assert sum(document.change == "added" and document.source == "other" for document in counted.documents) == 3
    local, opened = LocalStorage.local, set[str]()
    monkeypatch.setattr(LocalStorage, "local", lambda self, path: opened.add(path) or local(self, path))
    assert history.diff(0, 4).rows == history.diff(0, 4, documents=True).rows
    opened.clear()
    assert {(row.source, row.num_documents) for row in history.diff(0, 4).rows} >= {("other", 3)}
    assert not {path for path in opened if path.startswith(("documents/", "ids/"))}
