"""What a neighbour table is computed from: the database side, the exclusions of its rows, and the checks before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exclusion import NO_KEY, Exclusion, ExclusionKeys, Intervals
from retrodb.ann.list_rows import ListRows
from retrodb.ann.rerank import LivePart
from retrodb.ann.routing import Probes
from retrodb.ann.topk import TopK
from retrodb.config import NeighboursParams
from retrodb.errors import MissingStep
from retrodb.format.arrays import Int64Array
from retrodb.format.kinds import TABLE_KINDS
from retrodb.stages.index.live_parts import (
    KEY_KINDS,
    LiveParts,
    database_keys,
    key_kinds,
    missing_rows,
)
from retrodb.stages.neighbours.block_join import JoinHardware, join_rows
from retrodb.stages.neighbours.restriction import chosen_documents
from retrodb.stages.queries.sequence_keys import sequence_documents
from retrodb.store.digest import identity
from retrodb.view.view import SELF, View


def refuse_missing(view: View, queries: str, space: str) -> None:
    """Raises MissingStep when the query set has no vectors, or the space has vectors that are not indexed."""
    if not view.query_vectors(queries, space).records:
        raise MissingStep(
            f"query set '{queries}' has no vectors in space '{space}'", remedy="Run 'retrodb embed' first."
        )
    if any(missing_rows(view, space)):
        raise MissingStep(f"space '{space}' has vectors that are not indexed", remedy="Run 'retrodb index' first.")


def live_state(view: View) -> str:
    """A digest of the live files that neighbours can depend on: equal digests give equal tables."""
    screening = ("reports/", "rejects/", "inputs/", "testsets/")
    other = (*(f"{kind}/" for kind in TABLE_KINDS), *screening, "bands/", "duplicates/")
    other += ("rows/", "blocks/")  # which rows a file has follows from its path, and so do digests of its blocks
    return identity(sorted(path for path in view.manifest.paths() if not path.startswith(other)))


def database_side(view: View, space: str, params: NeighboursParams) -> list[LivePart]:
    """The chunks that can be neighbours in a table with these parameters, with the exclusion keys that it needs."""
    return list(each_part(view, space, params))


def each_part(view: View, space: str, params: NeighboursParams) -> LiveParts:
    """The parts of `database_side`, of which one at a time is in memory."""
    documents = chosen_documents(view, params.where, params.sample, params.seed)
    return LiveParts(view, space, key_kinds(params.exclude), documents=documents)


def exclusion_of(view: View, queries: str, params: NeighboursParams, rows: Int64Array) -> Exclusion:
    """What each query row must not have as a neighbour.

    Rows of another query set than the database's own exclude the documents that their sequences name, and no clusters.
    """
    keys: dict[str, ExclusionKeys] = {}
    for kind in key_kinds(params.exclude):
        if kind == "content":
            keys[kind] = view.query_set(queries).content_keys(rows)
        else:
            keys[kind] = database_keys(view, kind, rows) if queries == SELF else np.full(len(rows), NO_KEY)
    intervals = None
    if set(params.exclude) - set(KEY_KINDS):
        own = queries == SELF
        intervals = own_documents(view, rows) if own else sequence_documents(view, queries, rows)
    return Exclusion.of(len(rows), intervals, **keys)


def own_documents(view: View, rows: Int64Array) -> Intervals:
    """The ids of the document of each chunk."""
    return Intervals(view.chunks.document_bounds(rows), np.arange(len(rows) + 1))


def nearest_chunks(
    view: View,
    queries: str,
    space: str,
    codebook: Codebook,
    probes: Probes,
    params: NeighboursParams,
    parts: Sequence[LivePart] | Sequence[ListRows],
    rows: Int64Array,
    hardware: JoinHardware,
) -> TopK:
    """Neighbours and distances, (Q, k + spare_neighbours) each, of query rows among the rows of parts.

    Args:
        codebook: of the space, which finds the lists that rows may read.
    """
    exclusion, width = exclusion_of(view, queries, params, rows), params.k + params.spare_neighbours
    return join_rows(view, space, queries, rows, parts, codebook, probes, exclusion, width, hardware)
