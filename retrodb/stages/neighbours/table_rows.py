"""The rows of neighbour tables: what computing, repairing and folding them have in common."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from retrodb.config import NeighboursParams
from retrodb.format.entries import IndexEntry, SpaceEntry, TableDependencies
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import neighbours_schema
from retrodb.format.settings import parse_settings
from retrodb.store.publish import publish
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import ComparedSets
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from retrodb.ann.rerank import LivePart
    from retrodb.format.arrays import Float32Array, Int64Array

_BLOCK_ROWS = 1 << 20  # query rows of a task: a whole shard, so that many of them probe the same lists


def spans_of(view: View, queries: str) -> list[tuple[int, int]]:
    """The rows of a query set, cut into ranges (first, count): each is a task."""
    ranges = view.query_set(queries).ranges
    return [span for record in ranges for span in _blocks(record.first_chunk, record.num_chunks)]


def _blocks(first: int, count: int) -> list[tuple[int, int]]:
    return [(start, min(_BLOCK_ROWS, first + count - start)) for start in range(first, first + count, _BLOCK_ROWS)]


def query_ids(view: View, queries: str, space: str, first: int, count: int) -> Int64Array:
    """The live rows of a range of a query set that have a vector."""
    chunks = view.query_set(queries)
    mask = chunks.key_mask(first, count) & view.query_vectors(queries, space).covered_mask(first, count)
    return first + np.flatnonzero(mask)


def table_dependencies(view: View, queries: str, space: str, params: NeighboursParams) -> TableDependencies:
    """What a row's neighbours follow from, beside the chunks: where it differs, nothing of a row can be kept."""
    documents = [
        record.path
        for record in (() if queries == SELF else view.manifest.files("queries", queries))
        if record.path.rpartition("/")[2].startswith("documents.")
    ]
    clusters = view.manifest.files("duplicates") if "cluster" in params.exclude else ()
    return TableDependencies(
        space=view.snapshot.existing(SpaceEntry, space).fingerprint,
        queries=tuple(documents),
        clusters=tuple(record.path for record in clusters),
        codebook=None if params.exact else view.snapshot.existing(IndexEntry, space).codebook,
    )


def allowed_ids(parts: Iterable[LivePart]) -> list[Int64Array]:
    """The ids of each part that may be found."""
    return [part.ids_N if part.allowed_N is None else part.ids_N[part.allowed_N] for part in parts]


@lru_cache(maxsize=1)
def planned_view(storage: Storage, number: int, transaction: str) -> View:
    """The planned snapshot, opened once a process; its transaction tells databases apart that followed each other at a URL."""
    del transaction
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    return View(storage, settings, read_snapshot(storage, number))


def publish_rows(
    storage: Storage,
    table: str,
    task: str,
    span: tuple[int, int],
    rows: Int64Array,
    ids: Int64Array,
    distances: Float32Array,
) -> FileRecord:
    """Publish rows of a table that lie in a range of its query set, with their neighbours and distances (Q, w)."""
    import pyarrow as pa

    first, count = span
    width = ids.shape[1]
    arrays = [
        pa.array(rows),
        pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), width),
        pa.FixedSizeListArray.from_arrays(pa.array(distances.ravel()), width),
    ]
    schema = neighbours_schema(width)
    content = pa.Table.from_arrays([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)
    mask = np.zeros(count, dtype=bool)
    mask[rows - first] = True
    write = partial(write_table, table=content)
    path = path_of("neighbours", name=table, task=task)
    return publish(storage, "neighbours", path, write, name=table, first_chunk=first, rows=RowSet.from_mask(mask))


def publish_joined(storage: Storage, table: str, task: str, joined: ComparedSets) -> FileRecord:
    """Publish what the rows of a table were compared with."""
    write = partial(write_table, table=joined.to_table())
    return publish(storage, "joined", path_of("joined", name=table, task=task), write, name=table)
