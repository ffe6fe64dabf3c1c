"""The queries that recall is measured with: none of them can find itself in the database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodb.dedup.testset_items import read_test_items
from retrodb.errors import InputError, MissingStep
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.entries import QueriesEntry, SpaceEntry
from retrodb.stages.embed.space_encoder import EncoderHardware, check_identity, load_encoder
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.view.view import SELF, View

NUM_QUERIES = 2_000  # gives an interval of about 0.01 to either side at recall 0.95
_CHUNKS_PER_DOCUMENT = 4  # drawn from one of the database's own documents
_MAX_MASKED_FRACTION = 0.1  # of the chunks, in own documents that are hidden


@dataclass(frozen=True)
class HeldOutQueries:
    """Queries (Q, D) and where they come from."""

    name: str  # where they come from, as the report shows it
    vectors: AnyArray  # (Q, D)
    groups: Int64Array  # (Q,) equal for queries of one document, which are not independent
    masked: Int64Array  # ascending first chunks of the documents that are hidden while recall is measured


def held_out_queries(
    view: View, space: str, queries: str | None, seed: int, limit: int = NUM_QUERIES
) -> HeldOutQueries:
    """A seeded sample of a query set, of a file of texts or vectors, or of the database's own documents.

    The database's own documents that are drawn are hidden completely, so that none of their chunks is found.

    Args:
        queries: a file or the name of a query set; None takes the held-out documents, or own ones when there are none.

    Raises:
        MissingStep: when the query set has no vectors in the space, or there is no document to draw.
        InputError, UsageError, MismatchError: for an invalid file or name.
    """
    random = np.random.default_rng(seed)
    if queries is None:
        has_held_out = (
            bool(view.query_vectors(HELD_OUT_SET, space).records) and len(_rows(view, HELD_OUT_SET, space)) > 0
        )
        queries = HELD_OUT_SET if has_held_out else SELF
    if queries == SELF:
        return _own_documents(view, space, random, limit)
    if queries not in view.snapshot.names(QueriesEntry) and Path(queries).is_file():
        return _of_file(view, space, Path(queries), random, limit)
    documents = view.query_set(queries)  # raises when there is none
    rows = _rows(view, queries, space)
    if not len(rows):
        raise MissingStep(
            f"query set '{queries}' has no vectors in space '{space}'", remedy="Run 'retrodb embed' first."
        )
    rows = np.sort(random.permutation(rows)[:limit])
    vectors = view.vectors(space, rows, queries)
    return HeldOutQueries(f"query set {queries}", vectors, documents.document_ids(rows), np.empty(0, np.int64))


def _rows(view: View, queries: str, space: str) -> Int64Array:
    """The live rows of a query set that have a vector."""
    chunks, vectors = view.query_set(queries), view.query_vectors(queries, space)
    spans = [(record.first_chunk, record.num_chunks) for record in chunks.ranges]
    masks = [chunks.key_mask(*span) & vectors.covered_mask(*span) for span in spans]
    rows = [first + np.flatnonzero(mask) for (first, _), mask in zip(spans, masks, strict=True)]
    return np.concatenate([np.empty(0, np.int64), *rows])


def _own_documents(view: View, space: str, random: np.random.Generator, limit: int) -> HeldOutQueries:
    rows = _rows(view, SELF, space)
    documents, inverse, sizes = np.unique(view.chunks.document_ids(rows), return_inverse=True, return_counts=True)
    if len(documents) < 2:
        raise MissingStep(
            f"space '{space}' has fewer than two live documents, so none can be held out",
            remedy="Ingest and embed more, or name queries with --queries.",
        )
    order = random.permutation(len(documents))
    masked = np.cumsum(sizes[order]) <= _MAX_MASKED_FRACTION * len(rows)
    drawn = np.cumsum(np.minimum(sizes[order], _CHUNKS_PER_DOCUMENT)) <= limit
    chosen = order[: max(1, int((masked & drawn).sum()))]
    shuffled = random.permutation(len(rows))
    by_document = shuffled[np.argsort(inverse[shuffled], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    drawn_rows = [by_document[starts[d] : starts[d] + min(sizes[d], _CHUNKS_PER_DOCUMENT)] for d in chosen]
    ids = np.sort(rows[np.concatenate(drawn_rows)])[:limit]
    name = f"{len(chosen)} own documents, hidden"
    return HeldOutQueries(name, view.vectors(space, ids), view.chunks.document_ids(ids), np.sort(documents[chosen]))


def _of_file(view: View, space: str, path: Path, random: np.random.Generator, limit: int) -> HeldOutQueries:
    if path.suffix == ".npy":
        try:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise InputError(f"not an array ({error})", where=str(path)) from error
        if vectors.ndim != 2 or not len(vectors):
            raise InputError(
                f"an array of shape {vectors.shape}", where=str(path), remedy="Give (queries, dimensions)."
            )
        chosen = np.sort(random.permutation(len(vectors))[:limit])
        return HeldOutQueries(
            f"vectors of {path.name}", np.asarray(vectors[chosen], np.float32), chosen, np.empty(0, np.int64)
        )
    texts = read_test_items([path]).texts.to_pylist()
    if not texts:
        raise InputError("the file has no texts", where=str(path))
    chosen = np.sort(random.permutation(len(texts))[:limit])
    entry = view.snapshot.existing(SpaceEntry, space)
    encoder = load_encoder(entry.params, EncoderHardware())
    check_identity(space, entry, encoder.identity)
    vectors = encoder.encode_queries([texts[i] for i in chosen.tolist()])
    return HeldOutQueries(f"texts of {path.name}", vectors, chosen, np.empty(0, np.int64))
