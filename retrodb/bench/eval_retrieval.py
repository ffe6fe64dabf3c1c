"""Retrieval quality on judged queries: nDCG@10, recall@k and MRR, to compare encoders.

Documents are ranked by their best chunk. The judgements name a document by its id in its source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from retrodb.corpus.readers.jsonl import read_json_objects
from retrodb.corpus.streams import BYTE_ORDER_MARK, open_decompressed
from retrodb.dedup.testset_items import read_test_items
from retrodb.errors import InputError, UsageError
from retrodb.stages.search.command import Searcher
from retrodb.view.view import View

NDCG_DEPTH = 10
_MAX_HITS = 1 << 20  # of one search: bounds the memory where a query needs very many chunks
_CHUNKS_PER_DOCUMENT = 4  # of the first search; later ones take more where a document has many chunks near a query

Judgements = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> relevance: 0 is not relevant, more is better."""


@dataclass(frozen=True)
class RetrievalResult:
    """The quality of a space's ranking of documents, averaged over the queries that have a relevant document."""

    space: str
    num_queries: int  # that are averaged
    num_skipped_queries: int  # without a judgement of relevance above 0
    num_judged_documents: int
    num_missing_documents: int  # judged but not live: they count as not found
    num_duplicate_judgements: int  # of a query and a document that the file has judged before; the last one counts
    k: int  # of the recall
    ndcg_at_10: float
    recall_at_k: float  # fraction of a query's relevant documents among the first k
    mrr: float  # 1 over the rank of the first relevant document, 0 when it is not among the first max(k, 10)


def run_eval_retrieval(
    view: View,
    queries: Path,
    qrels: Path,
    *,
    k: int = 100,
    space: str | None = None,
    nprobe: int | None = None,
    device: str = "auto",
) -> RetrievalResult:
    """Search every judged query and compare its documents with the judgements.

    Args:
        queries: JSON Lines or Parquet, with an id and a text.
        qrels: judgements, see `read_qrels`.
        k: depth of the recall.
        nprobe: lists to read; None takes the operating point of the space.

    Raises:
        InputError: for a file that cannot be read, or when no query is judged.
        UsageError: for an invalid k.
    """
    if k < 1:
        raise UsageError(f"k of {k}", remedy="Give at least 1.")
    judgements, num_duplicates = read_judgements(qrels)
    items = read_test_items([queries])
    texts = dict(zip(items.ids, items.texts.to_pylist(), strict=True))
    judged = [name for name in texts if any(grade > 0 for grade in judgements.get(name, {}).values())]
    if not judged:
        remedy = "The ids of the queries must be those that the judgements name."
        raise InputError("no query has a relevant document", where=str(qrels), remedy=remedy)
    documents = set().union(*judgements.values())
    missing = documents - _live_documents(view, documents)
    if missing == documents:
        what = f"none of the {len(documents):,} judged documents is in the database, such as '{min(missing)}'"
        raise InputError(what, where=str(qrels), remedy="Judgements name a document by its id in its source.")
    searcher = Searcher.open(view, space=space)
    rankings = _rankings(searcher, [texts[name] for name in judged], max(k, NDCG_DEPTH), nprobe, device)
    grades = [judgements[name] for name in judged]
    return RetrievalResult(
        space=searcher.space,
        num_queries=len(judged),
        num_skipped_queries=len(texts) - len(judged),
        num_judged_documents=len(documents),
        num_missing_documents=len(missing),
        num_duplicate_judgements=num_duplicates,
        k=k,
        ndcg_at_10=_mean(ndcg(*pair) for pair in zip(rankings, grades, strict=True)),
        recall_at_k=_mean(document_recall(ranking, grade, k) for ranking, grade in zip(rankings, grades, strict=True)),
        mrr=_mean(reciprocal_rank(*pair) for pair in zip(rankings, grades, strict=True)),
    )


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], depth: int = NDCG_DEPTH) -> float:
    """Normalised discounted cumulative gain, with the grade as gain as in trec_eval (Järvelin and Kekäläinen 2002)."""

    def gain(values: Sequence[int]) -> float:
        return sum(max(value, 0) / math.log2(rank + 2) for rank, value in enumerate(values[:depth]))

    return gain([grades.get(name, 0) for name in ranking]) / gain(sorted(grades.values(), reverse=True))


def document_recall(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """The fraction of the relevant documents that are among the first k."""
    relevant = {name for name, grade in grades.items() if grade > 0}
    return len(relevant & set(ranking[:k])) / len(relevant)


def reciprocal_rank(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """1 over the rank, from 1, of the first relevant document; 0 without one."""
    return next((1 / rank for rank, name in enumerate(ranking, 1) if grades.get(name, 0) > 0), 0.0)


def read_qrels(path: Path) -> Judgements:
    """The judgements in a file, see `read_judgements`."""
    return read_judgements(path)[0]


def read_judgements(path: Path) -> tuple[Judgements, int]:
    """The judgements in a file, and how many of them judge a query and a document again. The last one counts.

    The content decides the format: JSON Lines with `query-id`, `corpus-id` and `score` (BEIR), or lines with the columns query,
    document and relevance, with or without the unused second column of TREC. A header is skipped.

    Raises:
        InputError: names file and line.
    """
    with open_decompressed(path) as stream:
        content = stream.read()
    is_json = content.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")
    rows = _json_judgements(content, path) if is_json else _column_judgements(content, path)
    judgements: dict[str, dict[str, int]] = {}
    num_duplicates = 0
    for number, row in rows:
        try:
            query, document, grade = row
            grades = judgements.setdefault(str(query), {})
            num_duplicates += str(document) in grades
            grades[str(document)] = int(grade)
        except ValueError as error:
            remedy = "A line is 'query 0 document relevance', or JSON with query-id, corpus-id and score."
            raise InputError(f"no judgement ({error})", where=f"{path}:{number}", remedy=remedy) from error
    return judgements, num_duplicates


def _json_judgements(content: bytes, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, [query, document, relevance]) of each record; fields that are missing are left out."""
    for number, record in read_json_objects(BytesIO(content), str(path)):
        score = record.get("score")
        values = [record.get("query-id"), record.get("corpus-id"), int(score) if isinstance(score, float) else score]
        yield number, [str(value) for value in values if value is not None]


def _column_judgements(content: bytes, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, [query, document, relevance]) of each line that is neither blank nor the header."""
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start})", where=str(path)) from error
    for number, line in enumerate(lines, 1):
        columns = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        is_header = number == 1 and bool(columns) and not columns[-1].strip().lstrip("-").isdigit()
        if line.strip() and not is_header:
            yield number, [columns[0], *columns[-2:]]


def _rankings(searcher: Searcher, texts: Sequence[str], depth: int, nprobe: int | None, device: str) -> list[list[str]]:
    """The first `depth` documents of every query by their nearest chunk; fewer when the space has no more."""
    vectors = searcher.encode(texts, device)
    rankings: list[list[str]] = [[] for _ in texts]
    rows, width = list(range(len(texts))), _CHUNKS_PER_DOCUMENT * depth
    while rows and searcher.num_chunks:
        width = min(width, searcher.num_chunks)
        following: list[int] = []
        num_rows = max(1, _MAX_HITS // width)
        for block in (rows[first : first + num_rows] for first in range(0, len(rows), num_rows)):
            ids, _ = searcher.arrays(vectors[block], width, nprobe=nprobe)
            for row, nearest in zip(block, ids, strict=True):
                documents = searcher.view.chunks.documents(nearest[nearest >= 0])
                names = dict.fromkeys(document["doc_id"] for document in documents if document)  # keeps the order
                rankings[row] = list(names)[:depth]
                if len(rankings[row]) < depth:
                    following.append(row)
        if width == searcher.num_chunks:
            break
        rows, width = following, 4 * width
    return rankings


def _live_documents(view: View, names: set[str]) -> set[str]:
    """Those of some ids that a document with a live chunk has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted, live = pa.array(sorted(names), pa.string()), set[str]()
    for record in view.chunks.ranges:
        ids = view.chunks.documents_table(record).column("doc_id")
        is_wanted = pc.is_in(ids, value_set=wanted)
        if pc.any(is_wanted).as_py():
            rows = np.flatnonzero(view.chunks.live_mask(record.first_chunk, record.num_chunks))
            index = np.unique(view.chunks.layout(record).document_of(rows))
            is_live = np.zeros(len(ids), dtype=bool)
            is_live[index[index >= 0]] = True
            live.update(ids.filter(pc.and_(is_wanted, pa.array(is_live))).to_pylist())
    return live


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
