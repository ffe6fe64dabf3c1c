"""What was found of a test set: the report of its screenings, read and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.format.entries import TestsetEntry
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.format.schemas import LEAK_REPORT
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

CONTAINED = 0.5
"""An item counts as contained in a document from this share of its shingles on; printed whatever the rule."""


@dataclass(frozen=True)
class LeakHit:
    """One pair of a document and a test item that share shingles, as reported when it was found."""

    testset: str
    item: str
    source: str
    doc_id: str
    first_chunk: int
    num_chunks: int
    intersection: int  # distinct shingles in both; 0 for texts too short for one that are equal word for word
    document_shingles: int
    item_shingles: int
    jaccard: float
    containment: float
    touched_chunks: tuple[int, ...]
    removed: bool
    item_text: str
    document_excerpt: str  # text of the first touched chunk, "" when it is gone


def read_leaks(view: View, testset: str | None) -> list[LeakHit]:
    """The reported hits of one test set, or of all, the most contained first."""
    rows: list[dict[str, Any]] = []
    for name in [testset] if testset else view.snapshot.names(TestsetEntry):
        texts = item_texts(view, name)
        reported = read_reports(view, view.manifest.files("reports", name)).to_pylist()
        rows += [{**row, "item_text": texts.get(row["item"], "")} for row in reported]
    rows.sort(key=lambda row: (-row["containment"], row["item"], row["first_chunk"]))
    first = np.array([row["touched_chunks"][0] if row["touched_chunks"] else -1 for row in rows], dtype=np.int64)
    excerpts = view.chunks.texts(first, deleted_too=True)
    for row, excerpt in zip(rows, excerpts, strict=True):
        row |= {"touched_chunks": tuple(row["touched_chunks"]), "document_excerpt": excerpt}
    return [LeakHit(**row) for row in rows]


def read_reports(view: View, records: Sequence[FileRecord]) -> pa.Table:
    """The rows of some report files, schema LEAK_REPORT."""
    import pyarrow as pa

    return pa.concat_tables([LEAK_REPORT.empty_table(), *(read_table(view.files.open(record)) for record in records)])


def item_texts(view: View, testset: str) -> dict[str, str]:
    """The text of every item of a registered test set, by id."""
    for record in view.manifest.files("testsets", testset):
        if record.path.endswith("/items.parquet"):
            return dict(zip(*(c.to_pylist() for c in read_table(view.files.open(record)).columns), strict=True))
    return {}


def removed_items(report: pa.Table) -> set[str]:
    """The items of which something was removed because they leaked, short texts aside."""
    return {row["item"] for row in report.to_pylist() if row["removed"] and row["intersection"]}


def with_removed(report: pa.Table, items: set[str]) -> pa.Table:
    """The report with every hit on these items marked as removed: at chunk level what is touched of them goes everywhere."""
    import pyarrow as pa

    removed = [row["removed"] or (row["item"] in items and row["intersection"] > 0) for row in report.to_pylist()]
    return report.set_column(
        LEAK_REPORT.get_field_index("removed"), LEAK_REPORT.field("removed"), pa.array(removed, pa.bool_())
    )


def summary(report: pa.Table) -> dict[str, int]:
    """What a report counts, by the names of `DedupResult`."""
    rows = report.to_pylist()
    hits = [row for row in rows if row["intersection"]]
    contained = [row for row in hits if row["containment"] >= CONTAINED]
    return {
        "hits": len(hits),
        "matched_items": len({row["item"] for row in hits}),
        "removed_documents": len({row["first_chunk"] for row in rows if row["removed"]}),
        "contained_items": len({row["item"] for row in contained}),
        "contained_documents": len({row["first_chunk"] for row in contained}),
        "short_matches": len({row["first_chunk"] for row in rows if not row["intersection"]}),
    }
