"""Search: the nearest live chunks of texts or vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import orjson

from retrodb.ann.codebook import Codebook
from retrodb.ann.rerank import SearchPart
from retrodb.ann.search import search
from retrodb.errors import MissingStep, UsageError
from retrodb.format.arrays import Float32Array, Int64Array
from retrodb.format.entries import SpaceEntry
from retrodb.format.json_codec import JsonValue
from retrodb.format.scores import Measure, measure_of, scores
from retrodb.printable import escape
from retrodb.stages.index.live_parts import missing_rows, open_codebook
from retrodb.stages.index.operating_point import candidate_cap, default_nprobe, stored_point
from retrodb.stages.index.search_parts import num_findable, search_parts
from retrodb.view.chunk_set import DocumentRow
from retrodb.view.view import View
from retrodb.view.where import documents_where


@dataclass(frozen=True)
class SearchHit:
    """One chunk near a query."""

    score: float  # how near the chunk is, in the measure below
    measure: Measure  # "similarity" (greater is nearer) or "squared_distance" (smaller is nearer), by the metric of the space
    chunk_id: int
    doc_id: str
    source: str
    position: int  # of the chunk in its document, from 0
    text: str
    continuation: str  # next chunk of the document, or the whole value of a key-value document; "" where there is none
    metadata: dict[str, JsonValue]
    query: int = 0  # number of the query, from 0
    rank: int = 0  # among the hits of the query, from 0


@dataclass(frozen=True)
class Searcher:
    """A space of one snapshot, opened for any number of searches."""

    view: View
    space: str
    codebook: Codebook
    parts: list[SearchPart]  # with the rows that may be found

    @staticmethod
    def open(
        view: View,
        *,
        space: str | None = None,
        source: str | None = None,
        where: str | None = None,
        is_limited: bool = True,
    ) -> Searcher:
        """Open the index of a space. Source and condition are applied inside every search.

        Args:
            source: only chunks of this source.
            where: only chunks of documents that match this SQL condition, see `documents_where`.
            is_limited: whether the command takes a memory limit.

        Raises:
            NotEnoughMemory: for a limit that is too low, see `search_parts`.
            MissingStep: when the space is not embedded or not indexed.
            UsageError: for an unknown source or an invalid condition.
            DamagedFileError: for a codebook that is missing or damaged. A file of a part is refused when a query reads it.
        """
        if source is not None and source not in view.shards.source:
            sources = ", ".join(sorted(set(view.shards.source)))
            raise UsageError(f"no source '{source}'", remedy=f"There are: {sources}.")
        name = space or view.snapshot.default_space
        codebook = open_codebook(view, name)
        documents = None if where is None else documents_where(view, where)
        parts = search_parts(view, name, source=source, documents=documents, is_limited=is_limited)
        return Searcher(view, name, codebook, parts)

    @cached_property
    def num_chunks(self) -> int:
        """Chunks that may be found. Only notes and benchmarks ask for it: it looks at all rows of parts with deletions."""
        return num_findable(self.parts)

    def notes(self, k: int, hits: Sequence[Sequence[SearchHit]]) -> list[str]:
        """Warnings for a user whose queries, with k hits asked for, gave these."""
        notes = []
        num_short = sum(len(of_query) < k for of_query in hits)
        if num_short and self.num_chunks < k:
            notes.append(f"only {self.num_chunks:,} live chunks can be found, so there are fewer than {k:,} hits")
        elif num_short:
            notes.append(
                f"{num_short:,} of {len(hits):,} queries have fewer than {k:,} hits in the lists that a query reads at most; "
                "more lists are read with a larger number of probes"
            )
        count = sum(part.num_rows for part in missing_rows(self.view, self.space))
        if count:
            notes.append(
                f"{count:,} chunks are embedded and not yet indexed, so they are not found: run 'retrodb index'"
            )
        return notes

    def arrays(
        self,
        queries: Sequence[str] | Float32Array,
        k: int,
        *,
        nprobe: int | None = None,
        recall: float | None = None,
        device: str = "auto",
        threads: int = 1,
    ) -> tuple[Int64Array, Float32Array]:
        """Ids (Q, k) int64 and scores (Q, k) float32 of the nearest chunks, nearest first.

        Where there are fewer than k in the lists that are read, ids are -1 and scores infinite. A query that finds fewer reads
        more lists, up to the number of `candidate_cap`.

        Args:
            queries: texts, which the encoder of the space encodes, or vectors (Q, D).
            nprobe: number of lists to read.
            recall: read as many lists as were measured for this recall. Without `nprobe` and `recall` the last stored
                operating point is used, else `default_nprobe`.

        Raises:
            MismatchError: for vectors of another dimension, or an encoder that is not that of the space.
            InputError: for NaN in a vector; names the row.
            UsageError: for an invalid k, number of lists or recall.
            MissingStep: when no operating point is stored for the recall.
        """
        if k < 1:
            raise UsageError(f"k of {k}", remedy="Ask for at least one result.")
        _refuse_text(queries)
        probes = self._nprobe(nprobe, recall)
        vectors = queries if isinstance(queries, np.ndarray) else self.encode(queries, device)
        width = min(k, sum(part.max_allowed for part in self.parts))
        ids = np.full((len(vectors), k), -1, dtype=np.int64)
        distances = np.full((len(vectors), k), np.inf, dtype=np.float32)
        if width:
            fetch = partial(self.view.vectors, self.space)
            most = candidate_cap(self.codebook.num_lists, probes)
            ids[:, :width], distances[:, :width] = search(
                vectors, self.parts, self.codebook, width, probes, threads=threads, fetch=fetch, most_lists=most
            )
        return ids, scores(distances, self.codebook.metric)

    def hits(
        self,
        queries: Sequence[str] | Float32Array,
        k: int,
        *,
        nprobe: int | None = None,
        recall: float | None = None,
        device: str = "auto",
        threads: int = 1,
    ) -> list[list[SearchHit]]:
        """At most k hits for each query, with their texts.

        Arguments and errors are those of `arrays`. An empty text is a UsageError too.
        """
        if not isinstance(queries, np.ndarray):
            _refuse_text(queries)
            for number, text in enumerate(queries, start=1):
                if not text.strip():
                    raise UsageError(f"query {number} is empty", remedy="Give a text with at least one word.")
        ids, values = self.arrays(queries, k, nprobe=nprobe, recall=recall, device=device, threads=threads)
        measure = measure_of(self.codebook.metric)
        return [_hits(self.view, number, *pair, measure) for number, pair in enumerate(zip(ids, values, strict=True))]

    def _nprobe(self, nprobe: int | None, recall: float | None) -> int:
        num_lists = self.codebook.num_lists
        if nprobe is not None and recall is not None:
            raise UsageError("both a number of lists and a recall are given", remedy="Give one of them.")
        if nprobe is not None:
            if not 1 <= nprobe <= num_lists:
                raise UsageError(
                    f"nprobe of {nprobe}", remedy=f"The index of space '{self.space}' has {num_lists} lists."
                )
            return nprobe
        if recall is not None and not 0 < recall <= 1:
            raise UsageError(f"recall of {recall}", remedy="Give a fraction above 0 and up to 1.")
        point = stored_point(self.view, self.space, recall)
        if point is None and recall is not None and recall < 1 and num_lists > 1:
            raise MissingStep(
                f"no operating point for recall {recall} is stored for space '{self.space}'",
                remedy=f"Run 'retrodb bench recall --target-recall {recall}' first, or use 'retrodb search --nprobe'.",
            )
        if recall == 1:
            return num_lists
        return min(point.nprobe or num_lists, num_lists) if point else default_nprobe(num_lists)

    def encode(self, texts: Sequence[str], device: str = "auto") -> Float32Array:
        """The vectors (Q, D) of texts from the encoder of the space.

        Raises:
            MismatchError: when the encoder changed since the space was embedded.
            UsageError: for one text instead of a sequence of texts.
        """
        _refuse_text(texts)
        from retrodb.stages.embed.space_encoder import EncoderHardware, check_identity, load_encoder

        entry = self.view.snapshot.existing(SpaceEntry, self.space)
        if not texts:
            return np.empty((0, entry.dimension), dtype=np.float32)
        encoder = load_encoder(entry.params, EncoderHardware(device=device))
        check_identity(self.space, entry, encoder.identity)
        return encoder.encode_queries(list(texts))


def _refuse_text(queries: object) -> None:
    """Python takes a text for a sequence of its characters: every letter would be searched."""
    if isinstance(queries, str | bytes):
        what = "the queries must be a sequence of texts, not one text"
        raise UsageError(what, remedy=f"Write [{escape(ascii(queries))}].")


def _hits(view: View, query: int, ids: Int64Array, values: Float32Array, measure: Measure) -> list[SearchHit]:
    ids, values = ids[ids >= 0], values[ids >= 0]
    documents = view.chunks.documents(ids)
    hits: list[SearchHit] = []
    for chunk, value, text, document in zip(
        ids.tolist(), values.tolist(), view.chunks.texts(ids), documents, strict=True
    ):
        assert document is not None, "a live chunk has a document"
        hit = SearchHit(
            score=value,
            measure=measure,
            chunk_id=chunk,
            doc_id=document["doc_id"],
            source=document["source"],
            position=chunk - document["first_chunk"],
            text=text,
            continuation=_continuation(view, chunk, document),
            metadata=orjson.loads(document["metadata"]),
            query=query,
            rank=len(hits),
        )
        hits.append(hit)
    return hits


def _continuation(view: View, chunk: int, document: DocumentRow) -> str:
    """The next chunk of the document. For a key it is the whole value, so that an answer is never truncated."""
    first, num_keys, num_chunks = document["first_chunk"], document["num_key_chunks"], document["num_chunks"]
    if not num_keys:
        return view.chunks.texts(view.chunks.continuation(np.array([chunk])))[0]
    return "".join(view.chunks.texts(np.arange(first + num_keys, first + num_chunks)))
