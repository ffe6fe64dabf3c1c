"""Do the files of a snapshot agree with each other? Digests tell that bytes are those that were written, no more.

Legend: M documents and N chunks of a range, m tokens of a chunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.arrays import map_array
from retrodb.format.ids import text_hashes
from retrodb.format.kinds import KINDS
from retrodb.format.parquet import iterate_row_groups, read_table
from retrodb.format.records import FileRecord
from retrodb.format.settings import Settings
from retrodb.store.manifest import Manifest
from retrodb.store.storage import Storage
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.view import CHUNK_FILES

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import AnyArray, BoolArray, Int64Array

Fault = tuple[str, str]
"""The path of a file, and what is wrong with it."""


def manifest_faults(manifest: Manifest, next_chunk: int) -> Iterator[Fault]:
    """Ranges, bitmaps and shards that the manifest cannot mean; no file is opened."""
    shards, records = manifest.shards, manifest.all_files()
    spans = list(zip(shards.first_chunk.tolist(), (shards.first_chunk + shards.num_chunks).tolist(), strict=True))
    ranges = {kind: {(r.first_chunk, r.num_chunks): r for r in records if r.kind == kind} for kind in CHUNK_FILES}
    for (_, end), (first, _) in pairwise([(0, 0), *spans]):
        if first < end:
            yield "manifests", f"the shard at {first} begins inside the one before"
    for first, end in spans:
        for kind in CHUNK_FILES:
            if (first, end - first) not in ranges[kind]:
                yield kind, f"the shard at {first} has no file of this kind"
    of_parts: dict[str, set[tuple[int, int, bytes | None]]] = defaultdict(set)
    for record in records:
        if record.first_chunk < 0:
            continue
        end = record.first_chunk + record.num_chunks
        if KINDS[record.kind].covers == "chunks" and end > next_chunk:
            yield record.path, f"covers ids up to {end}, of which only {next_chunk} were given"
        present = record.row_set.present if record.rows is not None else None
        if (record.num_chunks if present is None else len(present)) != record.num_rows:
            yield record.path, f"its bitmap has other than {record.num_rows} rows"
        elif present is not None and len(present) and present[-1] >= record.num_chunks:
            yield record.path, f"its bitmap reaches beyond its range of {record.num_chunks} rows"
        if record.kind == "parts":
            of_parts[record.path.rpartition("/")[0]].add((record.first_chunk, record.num_chunks, record.rows))
    yield from (
        (folder, "the files of this part cover different rows") for folder, rows in of_parts.items() if len(rows) > 1
    )


def contents_faults(
    storage: Storage, settings: Settings, manifest: Manifest, next_chunk: int, bad: set[str]
) -> Iterator[Fault]:
    """What the files say that cannot be so together; of files whose bytes are bad nothing is read."""
    good = [record for record in manifest.all_files() if record.path not in bad]
    of_range: dict[tuple[int, int], dict[str, FileRecord]] = defaultdict(dict)
    for record in good:
        if record.kind in CHUNK_FILES:
            of_range[record.first_chunk, record.num_chunks][record.kind] = record
        elif record.path.endswith(".npy") and record.kind == "vectors":
            if len(map_array(storage.local(record.path))) != record.num_rows:
                yield record.path, f"does not hold {record.num_rows} vectors"
        elif record.kind in ("attributes", "neighbours"):
            yield from _table_faults(storage, record, next_chunk)
    for files in of_range.values():
        if "documents" in files:
            yield from _range_faults(storage, settings, files)


def _table_faults(storage: Storage, record: FileRecord, next_chunk: int) -> Iterator[Fault]:
    table = read_table(storage.local(record.path))
    if table.num_rows != record.num_rows:
        yield record.path, f"{table.num_rows} rows instead of {record.num_rows}"
    elif record.kind == "neighbours":
        ids = table.column("neighbours").combine_chunks().flatten().to_numpy()
        if len(ids) and (ids.max() >= next_chunk or ids.min() < -1):
            yield record.path, "names chunks that were never given"
        if not np.array_equal(table.column("row").to_numpy(), record.first_chunk + record.row_set.present):
            yield record.path, "its rows are not those of its bitmap"


def _range_faults(storage: Storage, settings: Settings, files: dict[str, FileRecord]) -> Iterator[Fault]:
    """What the files of one range say against its documents, and against each other."""
    record = files["documents"]
    layout = DocumentLayout.from_table(read_table(storage.local(record.path), LAYOUT_COLUMNS))
    ends = layout.first_row + layout.num_chunks
    if (layout.first_row[1:] < ends[:-1]).any() or (
        len(ends) and (layout.first_row[0] < 0 or ends[-1] > record.num_chunks)
    ):
        yield record.path, "its documents overlap, or leave its range"
        return
    if "chunks" in files:
        yield from _chunk_faults(storage, settings, layout, files)
    if "ids" in files:
        rows = map_array(storage.local(files["ids"].path))["row"]
        if len(np.setdiff1d(layout.first_row, rows)):
            yield files["ids"].path, "lacks documents of its range"


def _chunk_faults(
    storage: Storage, settings: Settings, layout: DocumentLayout, files: dict[str, FileRecord]
) -> Iterator[Fault]:
    chunks, start = files["chunks"], 0
    present = chunks.row_set.present
    arrays = {kind: map_array(storage.local(files[kind].path)) for kind in ("tokens", "hashes") if kind in files}
    for kind, array in arrays.items():
        if len(array) != files[kind].num_rows or files[kind].rows != chunks.rows:
            yield files[kind].path, "does not hold the rows of its chunks"
            return
    for group in iterate_row_groups(storage.local(chunks.path), ["document", "tokens", "text"]):
        here = slice(start, start + group.num_rows)
        rows, start = present[here], start + group.num_rows
        document = layout.document_of(rows)
        if (
            len(rows) < group.num_rows
            or (document < 0).any()
            or (group.column("document").to_numpy() != layout.first_row[document]).any()
        ):
            yield chunks.path, "its chunks are not those of its documents"
            return
        lengths, padded, is_token = padded_tokens(group.column("tokens").combine_chunks(), settings)
        if (lengths != layout.lengths(rows, settings.chunk_tokens)).any():
            yield chunks.path, "its chunks have other numbers of tokens than its documents say"
            return
        if "tokens" in arrays and (arrays["tokens"][here] != padded)[is_token].any():
            yield files["tokens"].path, "its tokens are not those of its chunks"
            return
        if "hashes" in arrays and (arrays["hashes"][here] != text_hashes(group.column("text").combine_chunks())).any():
            yield files["hashes"].path, "its hashes are not those of its chunks' texts"
            return
    if start != len(present):
        yield chunks.path, f"{start} rows instead of {len(present)}"


def padded_tokens(tokens: pa.LargeListArray, settings: Settings) -> tuple[Int64Array, AnyArray, BoolArray]:
    """Lengths (N,), tokens (N, m) filled up with the pad token, and which of these are tokens (N, m)."""
    lengths = tokens.value_lengths().to_numpy()
    padded = np.full((len(lengths), settings.chunk_tokens), settings.pad_token, dtype=settings.token_dtype)
    is_token = np.arange(settings.chunk_tokens) < lengths[:, None]
    if (lengths <= settings.chunk_tokens).all():
        padded[is_token] = tokens.flatten().to_numpy()
    return lengths, padded, is_token
