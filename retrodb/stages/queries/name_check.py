"""Whether the documents that a query set names are in the database. A name that is not excludes nothing."""

from __future__ import annotations

from retrodb.errors import UsageError
from retrodb.format.arrays import AnyArray
from retrodb.stages.queries.megatron import MegatronPacking, read_names
from retrodb.stages.queries.packed_task import AnyPacking
from retrodb.stages.queries.sequence_keys import sequence_documents
from retrodb.stages.queries.tokens import TokenPacking, named_documents
from retrodb.view.named import first_chunks_of
from retrodb.view.view import View

_BLOCK_ROWS = 1 << 16


def count_known_names(view: View, packing: AnyPacking, *, allow_unknown: bool = False) -> tuple[int, int]:
    """The number of different names that come with a packing, and how many of them are in the database.

    Raises:
        UsageError: there are names, and none of them is in the database.
    """
    names = _names_of(packing)
    first_chunks = first_chunks_of(view, names)
    num_known = sum(map(bool, first_chunks.values()))
    if names and not num_known and not allow_unknown:
        raise UsageError(
            f"none of the {len(names):,} names in --doc-ids is in the database; the first is '{names[0]}'",
            remedy="Write the ids of its documents, or ID with SOURCE/ in front. To add the query set nevertheless, "
            "although nothing will be excluded from its rows, use --allow-unknown.",
        )
    return len(names), num_known


def _names_of(packing: AnyPacking) -> list[str]:
    """The names that users give, in their order; none for sequences of the database's own documents."""
    if isinstance(packing, MegatronPacking):
        return [name for name in dict.fromkeys(name for path in packing.doc_ids for name in read_names(path)) if name]
    if isinstance(packing, TokenPacking) and packing.doc_ids is not None:
        return named_documents(packing.doc_ids)
    return []


def count_unnamed_rows(view: View, query_set: str) -> int:
    """The number of rows of a query set that name no document of the database: `sequence` excludes nothing from them."""
    import numpy as np

    count = 0
    for record in view.query_set(query_set).ranges:
        for start in range(record.first_chunk, record.first_chunk + record.num_chunks, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, record.first_chunk + record.num_chunks)
            rows: AnyArray = np.arange(start, stop, dtype=np.int64)
            count += int((np.diff(sequence_documents(view, query_set, rows).offsets) == 0).sum())
    return count
