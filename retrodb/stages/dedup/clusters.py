"""Pairs of similar documents, and their clusters: what a search for near-duplicates leaves, and its readers.

Readers hold one block of rows at a time: clusters have a row for each of their documents, and there may be many.

Shapes: `E` pairs, `C` documents that are in a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodb.format.arrays import Float64Array, Int64Array
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.schemas import DUPLICATE_CLUSTERS, DUPLICATE_PAIRS
from retrodb.view.view import View

PAIRS, CLUSTERS = "pairs", "clusters"
"""Names of the two kinds of duplicates files."""


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

    @staticmethod
    def concat(blocks: Sequence[Pairs]) -> Pairs:
        """The pairs of all blocks, of which there is one or more."""
        columns = ([getattr(block, name) for block in blocks] for name in ("first", "second", "jaccard"))
        return Pairs(*map(np.concatenate, columns))

    def table(self) -> pa.Table:
        """As schema DUPLICATE_PAIRS."""
        return pa.table([self.first, self.second, self.jaccard], schema=DUPLICATE_PAIRS)


def read_pairs(view: View) -> Iterator[Pairs]:
    """The pairs that earlier searches found, in blocks."""
    for record in view.manifest.files("duplicates", PAIRS):
        yield from pair_blocks(view.files.open(record))


def pair_blocks(path: Path) -> Iterator[Pairs]:
    """The pairs of a file, in blocks."""
    for table in iterate_row_groups(path):
        yield Pairs(*(column.to_numpy() for column in table.columns))


@dataclass(frozen=True)
class Clusters:
    """The present documents that are in a cluster of two or more, by ascending id."""

    document: Int64Array  # (C,) id
    label: Int64Array  # (C,) smallest id of its cluster
    keeper: Int64Array  # (C,) id of the document of its cluster that is kept
    jaccard: Float64Array  # (C,) similarity to the keeper; 0 where only other documents of the cluster connect the two

    @staticmethod
    def none() -> Clusters:
        """No clusters."""
        none = np.empty(0, np.int64)
        return Clusters(none, none, none, np.empty(0, np.float64))

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
    blocks = [Clusters.none(), *cluster_blocks(view)]
    columns = ([getattr(block, name) for block in blocks] for name in ("document", "label", "keeper", "jaccard"))
    return Clusters(*map(np.concatenate, columns))


def cluster_blocks(view: View) -> Iterator[Clusters]:
    """The clusters in blocks of consecutive documents; a cluster may be in several blocks."""
    for record in view.manifest.files("duplicates", CLUSTERS):
        for table in iterate_row_groups(view.files.open(record)):
            if table.num_rows:
                yield Clusters(*(column.to_numpy() for column in table.columns))


def cluster_keys(view: View, ids: Int64Array) -> Int64Array:
    """(Q,) int64: equal for chunks of documents of one cluster; the document's id outside of clusters; -1 for no document."""
    documents, inverse = np.unique(view.chunks.document_ids(ids), return_inverse=True)
    keys = documents.copy()
    for clusters in cluster_blocks(view):
        low, high = np.searchsorted(documents, [clusters.document[0], clusters.document[-1] + 1])
        position = np.searchsorted(clusters.document, documents[low:high])
        is_member = clusters.document[position] == documents[low:high]
        keys[low:high][is_member] = clusters.label[position[is_member]]
    return keys[inverse]


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


def read_duplicates(view: View) -> Iterator[Duplicate]:
    """Every document that is deleted as a near-duplicate, with its keeper."""
    for clusters in cluster_blocks(view):
        yield from _duplicates(view, clusters)


def _duplicates(view: View, clusters: Clusters) -> Iterator[Duplicate]:
    """The deleted documents of a block."""
    rows = np.flatnonzero(clusters.document != clusters.keeper)
    ids, kept = clusters.document[rows], clusters.keeper[rows]
    excerpts, keeper_excerpts = (view.chunks.texts(first, deleted_too=True) for first in (ids, kept))
    documents, keepers_of = view.chunks.documents(ids), view.chunks.documents(kept)
    for row, document, keeper, excerpt, keeper_excerpt in zip(
        rows.tolist(), documents, keepers_of, excerpts, keeper_excerpts, strict=True
    ):
        if document and keeper:
            yield Duplicate(
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
