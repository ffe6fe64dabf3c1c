"""The MinHash bands of shards: each shard is hashed once, and its bands are stored as sorted runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.lsh import SortedBands, parse_bands, sort_bands
from retrodb.dedup.minhash import signatures
from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.dedup.near_documents import DescribedDocuments
from retrodb.stages.dedup.near_files import (
    BandsRun,
    FileList,
    map_numbered,
    near_path,
    publish_list,
    read_list,
    shard_groups,
)
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.document_blocks import document_blocks
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.view import View

STAGE_VERSION = 2


@dataclass(frozen=True)
class BandsPayload:
    """Hash the documents of one shard."""

    snapshot: PlannedSnapshot  # that the shard is read from
    name: str  # of the bands files
    params: NearDuplicatesParams
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True)
class DistinctPayload:
    """Leave the documents of repeated content out of the bands of a group of shards."""

    run: str
    bands: str  # path of the list of all bands
    num_equal_files: int
    first_chunk: int
    num_chunks: int


BANDS = TaskKind[BandsPayload, NoResult]("bands", STAGE_VERSION, NoResult)
DISTINCT = TaskKind[DistinctPayload, NoResult]("near-distinct", STAGE_VERSION, NoResult)


def bands_name(params: NearDuplicatesParams) -> str:
    """The name of the bands files that these parameters need."""
    return f"{params.ngram}-{params.permutations}-{params.bands}"


def bands_files(view: View, params: NearDuplicatesParams, spans: Sequence[ChunkRange]) -> list[FileRecord]:
    """The bands of the shards that have some."""
    wanted = set(spans)
    return [record for record in view.manifest.files("bands", bands_name(params)) if record.span in wanted]


def hash_shards(
    context: Context, view: View, run: Run, params: NearDuplicatesParams, spans: Sequence[ChunkRange]
) -> list[TaskRecord[NoResult]]:
    """Compute the bands of shards."""
    name, params = bands_name(params), replace(params, keep="first", jaccard=1.0)  # the bands do not depend on these
    tasks = [
        BANDS.task(BandsPayload(PlannedSnapshot.of(view), name, params, *span), weight=span.num_chunks)
        for span in spans
    ]
    return context.engine.run(run, tasks, run_bands, context.progress)


def run_bands(storage: Storage, task: Task[BandsPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The bands of one shard's documents."""
    del clock
    payload, params = task.payload, task.payload.params
    view = planned_view(storage, payload.snapshot)
    documents, chunks = (
        view.chunks.file(kind, payload.first_chunk, payload.num_chunks) for kind in ("documents", "chunks")
    )
    layout = DocumentLayout.from_table(read_table(view.files.open(documents), LAYOUT_COLUMNS))
    sketch = [np.empty((0, params.permutations), np.uint32)]
    for block in document_blocks(view.files.open(chunks), layout, view.files.rows(chunks).present):
        sketch.append(signatures(block.documents(), params.permutations, ngram=params.ngram))
    bands = sort_bands(np.concatenate(sketch), layout.first_row, parse_bands(params.bands, params.permutations))
    record = publish(
        storage,
        "bands",
        path_of("bands", name=payload.name, task=task.id),
        lambda local: save_array(local, bands),
        name=payload.name,
        first_chunk=payload.first_chunk,
        rows=RowSet.all(payload.num_chunks),
    )
    return TaskRecord(task.id, (record,), counts={"documents": len(layout.first_row)})


def distinct_bands(
    context: Context, view: View, run: Run, documents: DescribedDocuments, bands: Sequence[BandsRun]
) -> FileRecord:
    """The list of the bands of all shards without the documents whose content an earlier one has."""
    listed = publish_list(context.storage, run.id, "bands", FileList(bands=tuple(bands)))
    tasks = [
        DISTINCT.task(
            DistinctPayload(run.id, listed.path, documents.num_prefixes, *group),
            [listed.digest.sha256.hex()],
            group.num_chunks,
        )
        for group in shard_groups(view)
    ]
    records = context.engine.run(run, tasks, run_distinct, context.progress)
    shorter = {file.first_chunk: file for record in records for file in record.files}
    files = tuple(BandsRun(shorter.get(of.file.first_chunk, of.file), of.is_new) for of in bands)
    return publish_list(context.storage, run.id, "distinct", FileList(bands=files))


def run_distinct(storage: Storage, task: Task[DistinctPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Shorter copies of those bands of a group of shards that have documents of repeated content; the others stay as they are."""
    del clock
    payload, files, verified = task.payload, [], VerifiedFiles(storage)
    end = payload.first_chunk + payload.num_chunks
    repeated = _repeated(storage, payload, end)
    for of_shard in read_list(storage, payload.bands).bands:
        record = of_shard.file
        if not payload.first_chunk <= record.first_chunk < end:
            continue
        bands: SortedBands = verified.whole_array(record)
        low, high = np.searchsorted(repeated, [record.first_chunk, record.span.end])
        rows = repeated[low:high] - record.first_chunk
        if len(rows) and bands.size and (is_repeated := np.isin(bands["document"], rows)).any():
            # The documents are the same in every band, so all rows get the same length.
            shorter = bands[~is_repeated].reshape(len(bands), -1)
            path = near_path(payload.run, f"bands/{record.first_chunk}.npy")
            files.append(_publish_bands(storage, path, record, shorter))
    return TaskRecord(task.id, tuple(files))


def _publish_bands(storage: Storage, path: str, of_shard: FileRecord, bands: SortedBands) -> FileRecord:
    rows = RowSet.all(of_shard.num_chunks)
    first = of_shard.first_chunk
    return publish(storage, "runs", path, lambda local: save_array(local, bands), first_chunk=first, rows=rows)


def _repeated(storage: Storage, payload: DistinctPayload, end: int) -> Int64Array:
    """The documents of a group, ascending, whose content an earlier document has."""
    found = [np.empty(0, np.int64)]
    for pairs in map_numbered(storage, payload.run, "equal", payload.num_equal_files):
        low, high = np.searchsorted(pairs[:, 1], [payload.first_chunk, end])
        found.append(pairs[low:high, 1])
    return np.sort(np.concatenate(found), kind="stable")
