"""A search that asks only its candidates gives what a search over masks of all rows gives, and opening looks at no chunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.ann.search import search
from retrodb.database import Database
from retrodb.stages.index.live_parts import live_parts, open_codebook
from retrodb.stages.index.search_parts import StoredPart, num_findable, search_parts
from retrodb.view.bitmap_groups import BitmapGroups
from retrodb.view.chunk_set import ChunkSet

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Three sources in parts of their own, some of whose documents are deleted, and some compacted away."""
    made = make_database({f"a{i}": made_text(i, 150) for i in range(12)})
    for source, start in (("b", 20), ("c", 40)):
        texts = {f"{source}{i}": made_text(start + i, 150) for i in range(12)}
        made.ingest([write_documents(tmp_path / f"{source}.jsonl", texts)], source=source)
    made.embed()
    made.index(factory="IVF4,SQ8")
    return made


def equal_answers(database: Database, k: int, nprobe: int) -> None:
    view = database.view()
    codebook = open_codebook(view, "default")
    queries = np.concatenate([view.vectors("default", np.arange(0, 60, 7)), view.vectors("default", np.array([75]))])
    parts = search_parts(view, "default")
    answers = search(queries, parts, codebook, k, nprobe)
    expected = search(queries, live_parts(view, "default"), codebook, k, nprobe)
    for ours, theirs in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert num_findable(parts) == sum(part.num_allowed for part in live_parts(view, "default"))


@pytest.mark.parametrize("nprobe", [1, 4])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_candidates_are_asked_with_the_answers_of_masks(
    database: Database, k: int, nprobe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    equal_answers(database, k, nprobe)
    database.filter(doc_ids=["a3", "b5", "c1"], reason="gone")
    equal_answers(database, k, nprobe)
    database.compact(min_deleted=0)
    database.filter(doc_ids=["b1"], reason="gone")
    equal_answers(database, k, nprobe)
    others = [f"{source}{i}" for source in "ab" for i in range(12)]
    database.filter(doc_ids=[name for name in others if name not in ("a0", "a3", "b1", "b5")], reason="gone")
    equal_answers(database, k, nprobe)  # most candidates are refused: the masks are made


def test_opening_a_search_looks_at_no_chunk(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.filter(doc_ids=["b5"], reason="gone")
    view = database.view()
    vectors = view.vectors("default", np.array([1, 30]))

    def refuse(*others: object) -> None:
        raise AssertionError("opening looks at chunks")

    with monkeypatch.context() as patch:
        patch.setattr(ChunkSet, "_read_layout", refuse)
        patch.setattr(ChunkSet, "live_mask", refuse)
        patch.setattr(BitmapGroups, "bitmap", refuse)
        parts = search_parts(view, "default")
        codebook = open_codebook(view, "default")
        assert all(isinstance(part, StoredPart) for part in parts)
    masks = []
    allowed = StoredPart.allowed_N
    monkeypatch.setattr(StoredPart, "allowed_N", property(lambda self: masks.append(1) or allowed.func(self)))
    ids, _ = search(vectors, parts, codebook, 2, 4)
    assert ids[:, 0].tolist() == [1, 30]
    assert len(masks) < len(parts)  # the part with a deleted document asked its candidates only
