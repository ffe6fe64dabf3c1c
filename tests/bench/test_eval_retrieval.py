"""Retrieval quality against a plain reference, and on judged queries of a real collection."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_text, write_documents
from real_corpora import DATA

import retrodb
from retrodb.bench import eval_retrieval
from retrodb.bench.eval_retrieval import document_recall, ndcg, read_judgements, read_qrels, reciprocal_rank
from retrodb.database import Database
from retrodb.errors import InputError, UsageError
from retrodb.stages.search.command import Searcher
from retrodb_cli.main import main

EVAL = DATA / "eval"
NAMES = [f"d{number}" for number in range(12)]


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(NAMES), st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), min_size=1), st.integers(1, 12)
)
def test_the_measures_follow_their_definitions(ranking: list[str], grades: dict[str, int], k: int) -> None:
    if not any(grades.values()):
        return
    gained, best = 0.0, 0.0
    for rank in range(1, 11):
        gained += grades.get(ranking[rank - 1], 0) / math.log2(rank + 1)
        ideal = sorted(grades.values(), reverse=True) + [0] * 12
        best += ideal[rank - 1] / math.log2(rank + 1)
    relevant = [name for name in NAMES if grades.get(name, 0) > 0]
    ranks = [ranking.index(name) + 1 for name in relevant]
    assert ndcg(ranking, grades) == pytest.approx(gained / best)
    assert document_recall(ranking, grades, k) == pytest.approx(sum(rank <= k for rank in ranks) / len(relevant))
    assert reciprocal_rank(ranking, grades) == pytest.approx(1 / min(ranks))


@pytest.mark.parametrize(
    "text",
    [
        '{"query-id": "q1", "corpus-id": "d 1", "score": 1}\n\n{"query-id": "q2", "corpus-id": "d2", "score": 2}\n',
        "query-id\tcorpus-id\tscore\nq1\td 1\t1\nq2\td2\t2\n",
        "q1\t0\td 1\t1\r\nq2\t0\td2\t2\r\n",
    ],
)
def test_judgements_are_read_in_every_format(text: str, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text(text)
    assert read_qrels(tmp_path / "qrels") == {"q1": {"d 1": 1}, "q2": {"d2": 2}}


def test_trec_columns_may_be_separated_by_spaces(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q1 0 d1 1\nq1   0   d2   0\n")
    assert read_qrels(tmp_path / "qrels") == {"q1": {"d1": 1, "d2": 0}}
    (tmp_path / "qrels").write_text("q1 0 d1 1\nq1 0 d2 many\n")
    with pytest.raises(InputError, match=r"qrels:2: no judgement"):
        read_qrels(tmp_path / "qrels")


@pytest.fixture
def database(make_database: Callable[..., Database]) -> Database:
    made = make_database({f"d{i}": made_text(i, 300) for i in range(12)})
    made.embed()
    made.index()
    return made


def questions(tmp_path: Path, texts: dict[str, str], judgements: list[tuple[str, str, int]]) -> tuple[Path, Path]:
    qrels = tmp_path / "qrels.tsv"
    qrels.write_text("".join(f"{query}\t0\t{document}\t{grade}\n" for query, document, grade in judgements))
    return write_documents(tmp_path / "queries.jsonl", texts), qrels


def test_a_document_is_ranked_by_its_best_chunk(database: Database, tmp_path: Path) -> None:
    chunks = database.view().chunks
    first = {
        f"q{i}": chunks.texts(chunks.documents_table(chunks.ranges[0]).column("first_row").to_numpy()[[i]])[0]
        for i in range(12)
    }
    queries, qrels = questions(tmp_path, first, [(f"q{i}", f"d{i}", 1) for i in range(12)] + [("q0", "d9", 0)])
    result = database.eval_retrieval(queries=queries, qrels=qrels, k=12)
    assert (result.num_queries, result.num_skipped_queries, result.num_missing_documents) == (12, 0, 0)
    assert result.ndcg_at_10 == result.mrr == result.recall_at_k == 1.0


def test_every_document_is_found_however_many_chunks_the_others_have(database: Database, tmp_path: Path) -> None:
    queries, qrels = questions(tmp_path, {"q": made_text(3, 60)}, [("q", f"d{i}", 1) for i in range(12)])
    assert database.eval_retrieval(queries=queries, qrels=qrels, k=12).recall_at_k == 1.0


def test_the_number_of_hits_of_a_search_is_bounded(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide searches, for queries near documents with very many chunks, run for a few queries at a time."""
    sizes = []

    def search(self: Searcher, queries: Any, k: int, **options: Any) -> Any:
        sizes.append((len(queries), k))
        return arrays(self, queries, k, **options)

    judgements = [(f"q{n}", f"d{n}", 1) for n in range(5)]
    files = questions(tmp_path, {f"q{n}": made_text(n, 60) for n in range(5)}, judgements)
    expected = database.eval_retrieval(queries=files[0], qrels=files[1], k=12)
    arrays = Searcher.arrays
    monkeypatch.setattr(Searcher, "arrays", search)
    monkeypatch.setattr(eval_retrieval, "_MAX_HITS", 100)
    assert database.eval_retrieval(queries=files[0], qrels=files[1], k=12) == expected
    assert len(sizes) > 2
    assert all(num_queries == 1 or num_queries * k <= 100 for num_queries, k in sizes)


def test_deleted_documents_count_as_missing(database: Database, tmp_path: Path) -> None:
    queries, qrels = questions(tmp_path, {"q": made_text(3, 60), "r": "unjudged"}, [("q", "d3", 1), ("q", "gone", 1)])
    result = database.eval_retrieval(queries=queries, qrels=qrels)
    assert (result.num_queries, result.num_skipped_queries, result.num_missing_documents) == (1, 1, 1)
    assert result.recall_at_k == 0.5


def test_invalid_arguments_are_refused(database: Database, tmp_path: Path) -> None:
    queries, qrels = questions(tmp_path, {"q": "text"}, [("other", "d3", 1)])
    with pytest.raises(InputError, match="no query has a relevant document"):
        database.eval_retrieval(queries=queries, qrels=qrels)
    with pytest.raises(UsageError, match="k of 0"):
        database.eval_retrieval(queries=queries, qrels=qrels, k=0)
    with pytest.raises(InputError, match="no such file"):
        database.eval_retrieval(queries=queries, qrels=tmp_path / "nowhere")


def test_the_command_prints_the_measures(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries, qrels = questions(tmp_path, {"q": made_text(3, 60)}, [("q", "d3", 1)])
    arguments = ["eval-retrieval", database.path, "--queries", str(queries), "--qrels", str(qrels)]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["message_type"] == "retrieval_result"


@pytest.mark.corpora
@pytest.mark.skipif(not EVAL.exists(), reason="the real corpora are not here")
def test_minilm_ranks_limit_small_only_partly(tmp_path: Path, made_tokenizer: Path) -> None:
    """46 documents that list what people like; one vector a chunk does not tell them apart well, so recall is partial."""
    database = retrodb.create(tmp_path / "limit", tokenizer=str(made_tokenizer))
    database.ingest([EVAL / "limit-small-corpus.jsonl.zst"], source="limit")
    database.embed()
    database.index()
    result = database.eval_retrieval(
        queries=EVAL / "limit-small-queries.jsonl.zst", qrels=EVAL / "limit-small-qrels.jsonl.zst", k=20
    )
    assert (result.num_queries, result.num_judged_documents, result.num_missing_documents) == (1000, 46, 0)
    assert 0.2 < result.ndcg_at_10 < 0.95
    assert result.recall_at_k > result.ndcg_at_10 / 2


def test_judgements_of_unknown_documents_only_are_refused(database: Database, tmp_path: Path) -> None:
    queries = write_documents(tmp_path / "queries.jsonl", {"q": made_text(0, 9)})
    (tmp_path / "qrels").write_text("q 0 nobody 1\n")
    with pytest.raises(InputError, match="none of the 1 judged documents is in the database, such as 'nobody'"):
        database.eval_retrieval(queries=queries, qrels=tmp_path / "qrels")


def test_repeated_judgements_are_counted_and_the_last_one_counts(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q 0 d 1\nq 0 d 2\nq 0 e 1\nr 0 d 1\n")
    assert read_judgements(tmp_path / "qrels") == ({"q": {"d": 2, "e": 1}, "r": {"d": 1}}, 1)
