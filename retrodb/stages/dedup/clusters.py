"""Documents, pairs of similar documents, and the clusters of these: what near-duplicates reads.

Shapes: `M` documents, `E` pairs, `C` documents that are in a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from retrodb.dedup.union_find import Keep, choose_keepers, connected_components, equal_content_pairs
from retrodb.format.arrays import BoolArray, Float64Array, Int64Array
from retrodb.format.parquet import read_table
from retrodb.format.schemas import DUPLICATE_CLUSTERS, DUPLICATE_PAIRS
from retrodb.view.view import View

PAIRS, CLUSTERS = "pairs", "clusters"
"""Names of the two kinds of duplicates files."""


@dataclass(frozen=True)
class Documents:
    """Every document of the database, deleted or not, by ascending id."""

    ids: Int64Array  # (M,) of the first chunk
    num_chunks: Int64Array  # (M,)
    representative: Int64Array  # (M,) the first document (0 .. M-1) of the same content
    is_present: BoolArray  # (M,) some chunk of it is live, or deleted as a near-duplicate only
    num_chars: Int64Array  # (M,)
    added_at: Int64Array  # (M,) microseconds

    def index(self, ids: Int64Array) -> Int64Array:
        """The number (0 .. M-1) of each document, by id."""
        return np.searchsorted(self.ids, ids)

    def repeated(self) -> Int64Array:
        """Ids of the documents with the same content as an earlier one."""
        return np.asarray(self.ids[self.representative != np.arange(len(self.ids))])

    def num_equal(self) -> int:
        """How many present documents have the same content as an earlier present one."""
        present = self.representative[self.is_present]
        return len(present) - len(np.unique(present))


def read_documents(view: View, reason: str) -> Documents:
    """All documents; those that only `reason` deletes count as present."""
    parts = []
    for record in view.chunks.ranges:
        table = view.chunks.documents_table(record)
        columns = [table.column(name).to_numpy().astype(np.int64) for name in ("first_row", "num_chunks", "num_chars")]
        first_row, num_chunks, num_chars = columns
        is_deleted = ~view.chunks.present_mask(*record.span)
        for name, mask in view.chunks.tombstones.deleted_by_reason(*record.span).items():
            is_deleted |= mask & (name != reason)
        num_live = np.concatenate(([0], np.cumsum(~is_deleted)))
        is_present = num_live[first_row + num_chunks] > num_live[first_row]
        added_at = table.column("added_at").cast(pa.int64()).to_numpy()
        hashes = np.array(table.column("content_hash").to_pylist(), dtype="S16")
        parts.append((first_row + record.first_chunk, num_chunks, is_present, num_chars, added_at, hashes))
    if not parts:
        none = np.empty(0, np.int64)
        return Documents(none, none, none, none.astype(bool), none, none)
    ids, num_chunks, is_present, num_chars, added_at, hashes = map(np.concatenate, zip(*parts, strict=True))
    representative = np.arange(len(ids))
    equal = equal_content_pairs(hashes)
    representative[equal[:, 1]] = equal[:, 0]
    return Documents(ids, num_chunks, representative, is_present, num_chars, added_at)


@dataclass(frozen=True)
class Pairs:
    """Pairs of documents, by id, whose similarity reaches the threshold."""

    first: Int64Array  # (E,)
    second: Int64Array  # (E,)
    jaccard: Float64Array  # (E,)

    @staticmethod
    def none() -> Pairs:
        """No pairs."""
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))

    def concat(self, other: Pairs) -> Pairs:
        """The pairs of both."""
        return Pairs(
            np.concatenate([self.first, other.first]),
            np.concatenate([self.second, other.second]),
            np.concatenate([self.jaccard, other.jaccard]),
        )

    def restrict_to(self, ids: Int64Array) -> Pairs:
        """The pairs of two of these documents. Compaction drops documents, but never pairs."""
        has_both = np.isin(self.first, ids) & np.isin(self.second, ids)
        return Pairs(self.first[has_both], self.second[has_both], self.jaccard[has_both])

    def table(self) -> pa.Table:
        """As schema DUPLICATE_PAIRS."""
        return pa.table([self.first, self.second, self.jaccard], schema=DUPLICATE_PAIRS)


def read_pairs(view: View) -> Pairs:
    """All pairs that earlier runs found."""
    pairs = Pairs.none()
    for record in view.manifest.files("duplicates", PAIRS):
        pairs = pairs.concat(Pairs(*(c.to_numpy() for c in read_table(view.files.open(record)).columns)))
    return pairs


@dataclass(frozen=True)
class Clusters:
    """The present documents that are in a cluster of two or more, by ascending id."""

    document: Int64Array  # (C,) id
    label: Int64Array  # (C,) smallest id of its cluster
    keeper: Int64Array  # (C,) id of the document of its cluster that is kept
    jaccard: Float64Array  # (C,) similarity to the keeper; 0 where only other documents of the cluster connect the two

    @staticmethod
    def of(documents: Documents, pairs: Pairs, keep: Keep) -> Clusters:
        """The connected components. Documents of equal content are one node, and only present documents connect others."""
        node = documents.representative
        has_present = np.zeros(len(node), dtype=bool)
        has_present[node[documents.is_present]] = True
        pairs = pairs.restrict_to(documents.ids)
        first, second = node[documents.index(pairs.first)], node[documents.index(pairs.second)]
        connects = has_present[first] & has_present[second]
        labels = connected_components(len(node), np.stack([first, second], axis=1)[connects])[node]
        present = np.flatnonzero(documents.is_present)
        _, cluster_of, sizes = np.unique(labels[present], return_inverse=True, return_counts=True)
        chosen = present[sizes[cluster_of] > 1]
        labels = labels[chosen]
        kept = choose_keepers(labels, keep, documents.num_chars[chosen], documents.added_at[chosen])
        smallest = choose_keepers(labels, "first", documents.num_chars[chosen], documents.added_at[chosen])
        jaccard = _similarity(node[chosen], node[chosen][kept], first, second, pairs.jaccard)
        ids = documents.ids[chosen]
        return Clusters(ids, ids[smallest], ids[kept], jaccard)

    @cached_property
    def removed(self) -> Int64Array:
        """Ids of the documents that are not kept."""
        return np.asarray(self.document[self.document != self.keeper])

    @cached_property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return len(np.unique(self.label))

    def table(self) -> pa.Table:
        """As schema DUPLICATE_CLUSTERS."""
        return pa.table([self.document, self.label, self.keeper, self.jaccard], schema=DUPLICATE_CLUSTERS)


def read_clusters(view: View) -> Clusters:
    """The clusters as of the last search for near-duplicates; none before the first one."""
    for record in view.manifest.files("duplicates", CLUSTERS):
        return Clusters(*(column.to_numpy() for column in read_table(view.files.open(record)).columns))
    none = np.empty(0, np.int64)
    return Clusters(none, none, none, np.empty(0, np.float64))


def cluster_keys(view: View, ids: Int64Array) -> Int64Array:
    """(Q,) int64: equal for chunks of documents of one cluster; the document's id outside of clusters; -1 for no document."""
    clusters, documents = read_clusters(view), view.chunks.document_ids(ids)
    if not len(clusters.document):
        return documents
    position = np.minimum(np.searchsorted(clusters.document, documents), len(clusters.document) - 1)
    return np.where(clusters.document[position] == documents, clusters.label[position], documents)


@dataclass(frozen=True)
class Duplicate:
    """A document that is deleted because a similar one is kept."""

    source: str
    doc_id: str
    first_chunk: int
    keeper_source: str
    keeper_doc_id: str
    keeper_first_chunk: int
    cluster: int  # smallest first chunk of the cluster
    jaccard: float  # similarity to the keeper; 0 where only other documents of the cluster connect the two
    excerpt: str  # the document's first chunk
    keeper_excerpt: str


def read_duplicates(view: View) -> list[Duplicate]:
    """Every document that is deleted as a near-duplicate, with its keeper."""
    clusters = read_clusters(view)
    rows = np.flatnonzero(clusters.document != clusters.keeper)
    ids, kept = clusters.document[rows], clusters.keeper[rows]
    excerpts, keeper_excerpts = (view.chunks.texts(first, deleted_too=True) for first in (ids, kept))
    documents, keepers_of = view.chunks.documents(ids), view.chunks.documents(kept)
    return [
        Duplicate(
            source=document["source"],
            doc_id=document["doc_id"],
            first_chunk=document["first_chunk"],
            keeper_source=keeper["source"],
            keeper_doc_id=keeper["doc_id"],
            keeper_first_chunk=keeper["first_chunk"],
            cluster=int(clusters.label[row]),
            jaccard=float(clusters.jaccard[row]),
            excerpt=excerpt,
            keeper_excerpt=keeper_excerpt,
        )
        for row, document, keeper, excerpt, keeper_excerpt in zip(
            rows.tolist(), documents, keepers_of, excerpts, keeper_excerpts, strict=True
        )
        if document and keeper
    ]


def _similarity(
    nodes: Int64Array, kept: Int64Array, first: Int64Array, second: Int64Array, jaccard: Float64Array
) -> Float64Array:
    """(C,) the similarity of each node to the one that is kept: 1 to itself, 0 where the two are no pair."""
    jaccard_of = dict(zip(zip(first.tolist(), second.tolist(), strict=True), jaccard.tolist(), strict=True))
    similarities = [
        1.0 if a == b else jaccard_of.get((min(a, b), max(a, b)), 0.0)
        for a, b in zip(nodes.tolist(), kept.tolist(), strict=True)
    ]
    return np.array(similarities, dtype=np.float64)
