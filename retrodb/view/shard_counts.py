"""How many documents, chunks and keys of a shard are live, and how many each reason deletes: written with each change of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.records import ChunkRange, CountsRecord
from retrodb.view.layout import DocumentLayout
from retrodb.view.tombstones import mask_of
from retrodb.view.view import View


def count_shards(view: View, spans: Iterable[ChunkRange]) -> list[CountsRecord]:
    """The counts of the live shards that overlap some ranges of chunk ids. Reads the layout of each of these shards."""
    shards = view.shards
    numbers: set[int] = set()
    for span in spans:
        ends = shards.first_chunk + shards.num_chunks
        numbers.update(np.flatnonzero((shards.first_chunk < span.end) & (ends > span.first_chunk)).tolist())
    known = view.manifest.counts
    return [
        record
        for number in sorted(numbers)
        for record in _counts(view, shards.record(number).span)
        if known.get(record.first_chunk, {}).get(record.reason) != record
    ]


def _counts(view: View, span: ChunkRange) -> Iterator[CountsRecord]:
    """The counts of one shard: "" first, then those of every reason that deletes something, or did."""
    chunks = view.chunks
    layout = chunks.layout(chunks.file("documents", *span))
    present = chunks.present_mask(*span)
    by_reason = {
        reason: mask_of(rows, span.num_chunks) for reason, rows in chunks.tombstones.rows_by_reason(*span).items()
    }
    live = present & ~np.logical_or.reduce([np.zeros_like(present), *by_reason.values()])
    is_key = layout.is_key(np.arange(span.num_chunks), view.settings.chunk_tokens, view.settings.min_key_tokens)
    yield CountsRecord(
        first_chunk=span.first_chunk,
        reason="",
        num_chunks=int(live.sum()),
        num_documents=int((_rows_of_documents(layout, live) > 0).sum()),
        num_keys=int((live & is_key).sum()),
        num_tokens=int(layout.num_tokens.sum()),
    )
    num_present = _rows_of_documents(layout, present)
    for reason in sorted({*by_reason, *view.manifest.counts.get(span.first_chunk, {})} - {""}):
        deleted = by_reason.get(reason, np.zeros_like(present))
        is_gone = (num_present > 0) & (_rows_of_documents(layout, present & deleted) == num_present)
        yield CountsRecord(span.first_chunk, reason, int(deleted.sum()), int(is_gone.sum()))


def _rows_of_documents(layout: DocumentLayout, rows: BoolArray) -> Int64Array:
    """(M,) how many of some rows (N,) each document has."""
    before = np.concatenate(([0], np.cumsum(rows)))
    return np.asarray(before[layout.first_row + layout.num_chunks] - before[layout.first_row])
