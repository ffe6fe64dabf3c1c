"""Leakage without a model: how much of some chunks their nearest neighbours in a database contain word for word.

Shapes: Q query chunks of m tokens, K nearest neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodb.corpus.chunking import chunk_documents
from retrodb.dedup.testset_items import TestItems, read_test_items
from retrodb.errors import InputError, MissingStep, UsageError
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array
from retrodb.retro.collect import data_of_chunks, data_with_neighbours, sample_rows
from retrodb.retro.data import RetroData
from retrodb.retro.leakage import NUM_NEAREST, longest_shared_runs
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.stages.search.command import Searcher
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class LeakageResult:
    """The histogram of r(C): the longest run of tokens that a chunk shares with a nearest neighbour, divided by its own tokens.

    Only chunks whose neighbours were looked up count. A short chunk at the end of a document has no vector, and no r(C).
    """

    space: str
    against: str  # the file or query set
    num_documents: int
    num_chunks: int  # that were looked up: the denominator of all fractions
    num_chunks_not_looked_up: int  # left out: they have no vector, or no tokens
    chunk_tokens: int  # m
    num_neighbours: int  # compared with each chunk, nearest first, each with its continuation
    chunks_by_ratio: tuple[int, ...]  # (m + 1,) chunks with an r(C) from i / m up to (i + 1) / m; the last class is 1
    fraction_at_eighth: float  # of the chunks with r(C) >= 12.5%, the limit of the paper
    unused_text_fields: tuple[str, ...] = ()  # fields of the file with long texts that were not compared


def run_leakage(
    view: View,
    *,
    against: Path | None = None,
    queries: str | None = None,
    space: str | None = None,
    k: int = NUM_NEAREST,
    text_template: str | None = None,
    max_chunks: int = 100_000,
    seed: int = 0,
    device: str = "auto",
) -> LeakageResult:
    """The histogram of r(C) of a file's documents, or of a query set's.

    Args:
        against: a test-set file; its texts are chunked and encoded as the database's own.
        queries: an embedded query set, in place of a file.
        k: nearest neighbours to compare with.
        text_template: how the fields of a record of the file form its text.
        max_chunks: whole documents of the query set are drawn until they have this many chunks.

    Raises:
        UsageError: unless exactly one of file and query set is given, or for the database's own chunks.
        MissingStep: when the space has no index, or the query set no vectors.
        InputError: for a file without text.
    """
    if (against is None) == (queries is None):
        raise UsageError("a file or a query set is needed", remedy="Give either --against FILE or --queries NAME.")
    if k < 1:
        raise UsageError(f"k of {k}", remedy="Give at least 1.")
    searcher = Searcher.open(view, space=space)
    if against is not None:
        items = read_test_items([against], text_template)
        data, is_looked_up = _of_items(searcher, items, str(against), k, device), None
        unused = items.unused_text_fields
    else:
        unused = ()
        assert queries is not None
        rows = sample_rows(view.query_set(queries), max_chunks, seed)
        data, is_looked_up = data_with_nearest(searcher, queries, rows, k)
    runs = longest_shared_runs(data, k, is_looked_up)
    return LeakageResult(
        space=searcher.space,
        against=str(against or queries),
        num_documents=len(np.unique(data.query_documents)),
        num_chunks=runs.num_measured,
        num_chunks_not_looked_up=len(runs.length) - runs.num_measured,
        chunk_tokens=runs.chunk_tokens,
        num_neighbours=k,
        chunks_by_ratio=tuple(runs.histogram().tolist()),
        fraction_at_eighth=runs.fraction_from(1 / 8),
        unused_text_fields=unused,
    )


def data_with_nearest(searcher: Searcher, queries: str, rows: Int64Array, k: int) -> tuple[RetroData, BoolArray]:
    """Ascending rows of a query set (Q,) with their k nearest chunks of the database, and which were searched for: (Q,).

    A row without a vector was not: it has no neighbours, but that does not mean that there are none.

    Raises:
        UsageError: for the database's own chunks, each of which would find itself.
        MissingStep: when the query set is not embedded.
    """
    view, space = searcher.view, searcher.space
    if queries == SELF:
        remedy = "Hold documents out, or name some with 'retrodb queries add'."
        raise UsageError("the database's own chunks would each find itself", remedy=remedy)
    if not len(rows):
        raise InputError(f"query set '{queries}' has no live chunks", remedy="Name another query set.")
    is_covered = _covered(view, queries, space, rows)
    if not is_covered.any():
        what = f"query set '{queries}' has no vectors in space '{space}'"
        raise MissingStep(what, remedy="Run 'retrodb embed' first.")
    ids = np.full((len(rows), k), -1, dtype=np.int64)
    vectors: Float32Array = view.vectors(space, rows[is_covered], queries).astype(np.float32)
    ids[is_covered] = searcher.arrays(vectors, k)[0]
    return data_with_neighbours(view, queries, rows, ids, space=space), is_covered


def _covered(view: View, queries: str, space: str, rows: Int64Array) -> BoolArray:
    """(Q,) which of the rows have a vector. Short chunks at the end of a document have none."""
    is_covered = np.zeros(len(rows), dtype=bool)
    for hit in view.query_vectors(queries, space).lookup(rows):
        is_covered[hit.where] = True
    return is_covered


def _of_items(searcher: Searcher, items: TestItems, where: str, k: int, device: str) -> RetroData:
    view, m = searcher.view, searcher.view.settings.chunk_tokens
    tokenizer = load_tokenizer(view.storage.url, view.settings.tokenizer_sha256)
    chunks = chunk_documents(items.texts, None, tokenizer, m)
    lengths = np.diff(chunks.token_offsets)
    if not lengths.sum():
        raise InputError("no text", where=where)
    tokens = np.zeros((len(lengths), m), dtype=chunks.tokens.dtype)
    tokens[np.arange(m) < lengths[:, None]] = chunks.tokens
    texts = chunks.text.to_pylist()
    ids, _ = searcher.arrays(searcher.encode(texts, device), k)
    return data_of_chunks(view, tokens, lengths, texts, chunks.document.astype(np.int64), ids, space=searcher.space)
