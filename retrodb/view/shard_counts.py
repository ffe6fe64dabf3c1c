"""How many documents, chunks and keys of a shard are live, and how many each reason deletes: written with each change of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.records import ChunkRange, CountsRecord, FileRecord
from retrodb.format.rows import mask_of
from retrodb.store.manifest import Manifest, ShardTable
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.layout import DocumentLayout
from retrodb.view.view import SELF, View


def shard_counts(chunks: ChunkSet, documents: FileRecord) -> tuple[CountsRecord, ...]:
    """The counts of one shard: "" first, then those of every reason that deletes something. Reads the shard's layout."""
    span, settings = documents.span, chunks.settings
    layout, present = chunks.layout(documents), chunks.present_mask(*span)
    by_reason = {
        reason: mask_of(rows, span.num_chunks) for reason, rows in chunks.tombstones.rows_by_reason(*span).items()
    }
    live = present & ~np.logical_or.reduce([np.zeros_like(present), *by_reason.values()])
    is_key = layout.is_key(np.flatnonzero(live), settings.chunk_tokens, settings.min_key_tokens)
    counts = [
        CountsRecord(
            first_chunk=span.first_chunk,
            reason="",
            num_chunks=int(live.sum()),
            num_documents=int((_rows_of_documents(layout, live) > 0).sum()),
            num_keys=int(is_key.sum()),
            num_tokens=int(layout.num_tokens.sum()),
        )
    ]
    num_present = _rows_of_documents(layout, present)
    for reason, deleted in sorted(by_reason.items()):
        is_gone = (num_present > 0) & (_rows_of_documents(layout, present & deleted) == num_present)
        counts.append(CountsRecord(span.first_chunk, reason, int(deleted.sum()), int(is_gone.sum())))
    return tuple(counts)


def changed_counts(manifest: Manifest, span: ChunkRange, counts: Sequence[CountsRecord]) -> list[CountsRecord]:
    """The counts of a shard that are not those of the manifest; 0 for a reason that does not delete anything any more."""
    known = manifest.counts.get(span.first_chunk, {})
    now = {record.reason: replace(record, first_chunk=span.first_chunk) for record in counts}
    for reason in known.keys() - now.keys():
        now[reason] = CountsRecord(span.first_chunk, reason, 0, 0)
    return [record for reason, record in sorted(now.items()) if known.get(reason) != record]


def shards_overlapping(shards: ShardTable, spans: Iterable[ChunkRange]) -> list[ChunkRange]:
    """The shards that have an id of some ranges, ascending."""
    ends, numbers = shards.first_chunk + shards.num_chunks, set[int]()
    for span in spans:
        numbers.update(np.flatnonzero((shards.first_chunk < span.end) & (ends > span.first_chunk)).tolist())
    return [shards.record(number).span for number in sorted(numbers)]


def num_embeddable_chunks(view: View) -> int:
    """Chunks that want a vector. Looks at the chunks of a shard only where a part of it was screened."""
    return sum(num for _, num in _embeddable(view))


def num_embedded_chunks(view: View, space: str) -> int:
    """Of the chunks that want a vector, those that have one in a space. Reads bitmaps of partly screened shards only."""
    covered = num_covered(view, space)
    return sum(
        int(covered[number]) if view.is_all_screened(*span) else _num_screened_embedded(view, space, span)
        for number, (span, num) in enumerate(_embeddable(view))
        if num
    )


def num_pending_chunks(view: View, space: str) -> int:
    """Chunks that want a vector in a space and have none."""
    return num_embeddable_chunks(view) - num_embedded_chunks(view, space)


def complete_shards(view: View, space: str) -> BoolArray:
    """(S,) bool: of which shards every chunk that wants a vector has one in a space. False also where that is not known."""
    counts = (view.manifest.live_counts(first) for first in view.shards.first_chunk.tolist())
    num_keys = np.fromiter((count.num_keys for count in counts), np.int64, len(view.shards))
    spans = (view.shards.record(number).span for number in range(len(view.shards)))
    is_screened = np.fromiter((view.is_all_screened(*span) for span in spans), bool, len(view.shards))
    return np.asarray(is_screened & (num_keys == num_covered(view, space)))


def num_covered(view: View, space: str) -> Int64Array:
    """(S,) int64: how many live chunks of each shard have a vector in a space, screened or not."""
    return view.manifest.num_covered("vectors" if view.keeps_vectors(space) else "parts", space)


def _embeddable(view: View) -> Iterator[tuple[ChunkRange, int]]:
    """Every shard, and how many of its chunks want a vector."""
    for number in range(len(view.shards)):
        span = view.shards.record(number).span
        if view.is_all_screened(*span):
            yield span, view.manifest.live_counts(span.first_chunk).num_keys
        elif view.screened_mask(*span).any():
            yield span, int(view.embeddable_mask(*span).sum())
        else:
            yield span, 0


def _num_screened_embedded(view: View, space: str, span: ChunkRange) -> int:
    """The rows with a vector that are live and screened: a file of vectors has keys only."""
    rows = view.query_vectors(SELF, space).covered_rows(*span) & view.chunks.live_rows(*span)
    return int((mask_of(rows, span.num_chunks) & view.screened_mask(*span)).sum())


def _rows_of_documents(layout: DocumentLayout, rows: BoolArray) -> Int64Array:
    """(M,) how many of some rows (N,) each document has."""
    before = np.concatenate(([0], np.cumsum(rows)))
    return np.asarray(before[layout.first_row + layout.num_chunks] - before[layout.first_row])
