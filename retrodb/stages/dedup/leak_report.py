"""The report of a test set's screenings: its rows, read and counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.entries import TestsetEntry
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.format.schemas import LEAK_REPORT
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

CONTAINED = 0.5
"""An item counts as contained in a document if the document has at least this fraction of its shingles, whatever the rule."""


@dataclass(frozen=True)
class ReportRow:
    """A row of schema `LEAK_REPORT`, with the names of its columns."""

    testset: str
    item: str
    source: str
    doc_id: str
    first_chunk: int
    num_chunks: int
    intersection: int
    document_shingles: int
    item_shingles: int
    jaccard: float
    containment: float
    touched_chunks: tuple[int, ...]
    removed: bool


@dataclass(frozen=True)
class LeakHit:
    """A document and a test item that have shared shingles, as reported when they were compared."""

    testset: str
    item: str
    source: str
    doc_id: str
    first_chunk: int
    num_chunks: int
    num_shared_shingles: int  # distinct ones; 0 for equal texts that are too short for a shingle
    num_document_shingles: int
    num_item_shingles: int
    jaccard: float
    containment: float
    touched_chunks: tuple[int, ...]  # ids of the chunks that shared shingles touch
    is_removed: bool
    item_text: str
    document_excerpt: str  # text of the first touched chunk, "" when compaction dropped it


@dataclass(frozen=True)
class LeakCounts:
    """What a report says in numbers."""

    num_hits: int  # pairs of a document and an item with a shared shingle
    num_matched_items: int  # items with a hit
    num_removed_documents: int  # documents that lost all chunks, or at chunk level some
    num_contained_items: int  # items of which a document has half or more, whatever the rule
    num_contained_documents: int  # documents that have half or more of an item
    num_short_matches: int  # documents that are too short for a shingle and equal to an item, word for word


def read_leaks(view: View, testset: str | None) -> list[LeakHit]:
    """The reported hits of one test set, or of all, the most contained first."""
    rows: list[ReportRow] = []
    texts: dict[tuple[str, str], str] = {}
    for name in [testset] if testset else view.snapshot.names(TestsetEntry):
        texts |= {(name, item): text for item, text in item_texts(view, name).items()}
        rows += report_rows(read_reports(view, view.manifest.files("reports", name)))
    rows.sort(key=lambda row: (-row.containment, row.item, row.first_chunk))
    first_touched = np.array([row.touched_chunks[0] if row.touched_chunks else -1 for row in rows], dtype=np.int64)
    excerpts = view.chunks.texts(first_touched, deleted_too=True)
    return [
        LeakHit(
            testset=row.testset,
            item=row.item,
            source=row.source,
            doc_id=row.doc_id,
            first_chunk=row.first_chunk,
            num_chunks=row.num_chunks,
            num_shared_shingles=row.intersection,
            num_document_shingles=row.document_shingles,
            num_item_shingles=row.item_shingles,
            jaccard=row.jaccard,
            containment=row.containment,
            touched_chunks=row.touched_chunks,
            is_removed=row.removed,
            item_text=texts.get((row.testset, row.item), ""),
            document_excerpt=excerpt,
        )
        for row, excerpt in zip(rows, excerpts, strict=True)
    ]


def read_reports(view: View, records: Sequence[FileRecord]) -> pa.Table:
    """The rows of some report files, schema LEAK_REPORT."""
    return concat_reports(read_table(view.files.open(record)) for record in records)


def concat_reports(reports: Iterable[pa.Table]) -> pa.Table:
    """The rows of some reports, which may be none."""
    import pyarrow as pa

    return pa.concat_tables([LEAK_REPORT.empty_table(), *reports])


def report_table(rows: Iterable[ReportRow]) -> pa.Table:
    """The rows as a table, schema LEAK_REPORT."""
    import pyarrow as pa

    return pa.Table.from_pylist([asdict(row) for row in rows], schema=LEAK_REPORT)


def report_rows(report: pa.Table) -> list[ReportRow]:
    """The rows of a report."""
    rows = report.to_pylist()
    return [ReportRow(**{**row, "touched_chunks": tuple(row["touched_chunks"])}) for row in rows]


def with_ids(report: pa.Table, first_chunk: int) -> pa.Table:
    """A report whose chunks are rows of a shard, with the chunk ids in their place."""
    import pyarrow as pa
    import pyarrow.compute as pc

    touched = report.column("touched_chunks").combine_chunks()
    ids = pa.LargeListArray.from_arrays(touched.offsets, pc.add(touched.values, first_chunk))
    columns = {
        **{name: report.column(name) for name in report.column_names},
        "first_chunk": pc.add(report.column("first_chunk"), first_chunk),
        "touched_chunks": ids,
    }
    return pa.table(columns).cast(LEAK_REPORT)


def item_texts(view: View, testset: str) -> dict[str, str]:
    """The text of every item of a registered test set, by id."""
    for record in view.manifest.files("testsets", testset):
        if record.path.endswith("/items.parquet"):
            return dict(zip(*(c.to_pylist() for c in read_table(view.files.open(record)).columns), strict=True))
    return {}


def removed_items(report: pa.Table) -> set[str]:
    """The items for which chunks were removed because of shared shingles."""
    return {row.item for row in report_rows(report) if row.removed and row.intersection}


def with_removed(report: pa.Table, items: set[str]) -> pa.Table:
    """The report with every hit on these items marked as removed: at chunk level these items are removed everywhere."""
    import pyarrow as pa

    removed = [row.removed or (row.item in items and row.intersection > 0) for row in report_rows(report)]
    return report.set_column(
        LEAK_REPORT.get_field_index("removed"), LEAK_REPORT.field("removed"), pa.array(removed, pa.bool_())
    )


def count_leaks(report: pa.Table) -> LeakCounts:
    """The counts of a report."""
    rows = report_rows(report)
    hits = [row for row in rows if row.intersection]
    contained = [row for row in hits if row.containment >= CONTAINED]
    return LeakCounts(
        num_hits=len(hits),
        num_matched_items=len({row.item for row in hits}),
        num_removed_documents=len({row.first_chunk for row in rows if row.removed}),
        num_contained_items=len({row.item for row in contained}),
        num_contained_documents=len({row.first_chunk for row in contained}),
        num_short_matches=len({row.first_chunk for row in rows if not row.intersection}),
    )
