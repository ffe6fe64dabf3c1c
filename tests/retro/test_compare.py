"""Two spaces side by side, measured with the same queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_documents import made_text

from retrodb.database import Database
from retrodb.errors import MissingStep, UsageError

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    made = make_database({str(i): made_text(i, 300) for i in range(12)})
    for space, encoder in (("default", None), ("same", "hashing:32"), ("small", "hashing:4")):
        made.embed(space=space, encoder=encoder)
        made.index(space=space)
    return made


def test_equal_spaces_agree_and_a_poor_one_does_not(database: Database) -> None:
    same = database.compare("default", "same", k=3)
    assert same.agreement == 1.0
    poor = database.compare("default", "small", k=3)
    assert poor.agreement < 0.9
    first, second = poor.spaces
    assert (first.dimension, second.dimension) == (32, 4)
    assert first.bytes_per_chunk > second.bytes_per_chunk
    assert first.recall == 1.0
    assert first.p50_latency_s > 0


def test_judged_queries_show_which_encoder_is_better(database: Database, tmp_path: Path) -> None:
    queries, qrels = tmp_path / "queries.jsonl", tmp_path / "qrels.jsonl"
    texts = {str(i): made_text(i, 300)[40:160] for i in range(12)}
    queries.write_text("".join(json.dumps({"id": f"q{i}", "text": text}) + "\n" for i, text in texts.items()))
    qrels.write_text("".join(json.dumps({"query-id": f"q{i}", "corpus-id": i, "score": 1}) + "\n" for i in texts))
    good, poor = database.compare("default", "small", queries=str(queries), qrels=str(qrels)).spaces
    assert good.ndcg_at_10 is not None
    assert poor.ndcg_at_10 is not None
    assert good.ndcg_at_10 > poor.ndcg_at_10


def test_invalid_comparisons_are_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        database.compare("default", "default")
    with pytest.raises(UsageError, match="both or neither"):
        database.compare("default", "small", queries=str(tmp_path / "q"))
    with pytest.raises(UsageError, match=r"no space 'none'\. There are: default"):
        database.compare("default", "none")
    with pytest.raises(MissingStep, match="no neighbour tables"):
        database.compare("default", "small", minutes=0.01)
