"""Search: the nearest live chunks of a few texts or vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from retrodb.ann.metric import scores
from retrodb.ann.search import search
from retrodb.config import EmbedParams, from_mapping
from retrodb.errors import UsageError
from retrodb.format.arrays import Float32Array
from retrodb.stages.embed import check_identity
from retrodb.stages.embed_task import Hardware, load_encoder
from retrodb.stages.live_parts import live_parts, open_codebook
from retrodb.stages.operating_point import default_nprobe
from retrodb.view.view import View


@dataclass(frozen=True)
class SearchHit:
    """One chunk near a query."""

    score: float  # inner product, larger is nearer; or squared distance, smaller is nearer: as the space's metric says
    chunk_id: int
    doc_id: str
    source: str
    position: int  # of the chunk in its document, from 0
    text: str
    continuation: str  # the next chunk of the document; the whole value of a key-value document; "" without
    metadata: dict[str, Any]


def run_search(
    view: View,
    queries: Sequence[str] | Float32Array,
    *,
    k: int = 5,
    space: str | None = None,
    source: str | None = None,
    nprobe: int | None = None,
    device: str = "auto",
) -> list[list[SearchHit]]:
    """The k nearest live chunks of every query, nearest first; fewer where the database has no more.

    Args:
        queries: texts, which the space's own encoder encodes, or vectors (Q, D).
        source: only chunks of this source.
        nprobe: lists to look through; None takes the operating point of the space.

    Raises:
        MissingStep: when the space is not embedded or not indexed.
        MismatchError: for vectors of another dimension, or an encoder that is not the space's.
        UsageError: for a k or a source that cannot be meant.
    """
    if k < 1:
        raise UsageError(f"k of {k}", remedy="Ask for at least one result.")
    if source is not None and source not in view.shards.source:
        have = ", ".join(sorted(set(view.shards.source)))
        raise UsageError(f"no source '{source}'", remedy=f"There are: {have}.")
    name = space or view.snapshot.default_space
    codebook = open_codebook(view, name)
    vectors = _vectors(view, name, queries, device)
    parts = live_parts(view, name, allowed=None if source is None else {"source": frozenset({source})})
    probes = nprobe or default_nprobe(codebook.num_lists)
    ids, distances = search(vectors, parts, codebook, k, probes)
    values = scores(distances, codebook.metric)
    return [_hits(view, own, value) for own, value in zip(ids, values, strict=True)]


def _vectors(view: View, space: str, queries: Sequence[str] | Float32Array, device: str) -> Float32Array:
    if isinstance(queries, np.ndarray):
        return queries
    entry = view.snapshot.entry("space", space)
    params = from_mapping(EmbedParams, entry["params"], where=f"space '{space}'")
    encoder = load_encoder(params, Hardware(device=device))
    check_identity(space, entry, encoder.identity)
    return encoder.encode_queries(list(queries))


def _hits(view: View, ids: np.ndarray[Any, np.dtype[np.int64]], values: Float32Array) -> list[SearchHit]:
    ids, values = ids[ids >= 0], values[ids >= 0]
    documents = view.chunks.documents(ids)
    hits = []
    for chunk, value, text, document in zip(
        ids.tolist(), values.tolist(), view.chunks.texts(ids), documents, strict=True
    ):
        assert document is not None, "a live chunk has a document"
        hit = SearchHit(
            score=value,
            chunk_id=chunk,
            doc_id=document["doc_id"],
            source=document["source"],
            position=chunk - document["first_chunk"],
            text=text,
            continuation=_continuation(view, chunk, document),
            metadata=orjson.loads(document["metadata"]),
        )
        hits.append(hit)
    return hits


def _continuation(view: View, chunk: int, document: dict[str, Any]) -> str:
    """What follows a chunk: for a key the whole value, so that an answer is never cut off."""
    first, keys, count = document["first_chunk"], document["num_key_chunks"], document["num_chunks"]
    if not keys:
        return view.chunks.texts(view.chunks.continuation(np.array([chunk])))[0]
    return "".join(view.chunks.texts(np.arange(first + keys, first + count)))
