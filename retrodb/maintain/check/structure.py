"""Do the files of a snapshot agree with each other? Digests only prove that bytes are those that were written.

Legend: M documents and N chunks of a range, m tokens of a chunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.arrays import map_array
from retrodb.format.document_keys import text_hashes
from retrodb.format.kinds import KINDS
from retrodb.format.parquet import iterate_row_groups, read_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.settings import Settings
from retrodb.store.manifest import Manifest
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.naming import NamedPairs, naming_path
from retrodb.view.view import CHUNK_FILES

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import AnyArray, BoolArray, Int64Array

Fault = tuple[str, str]
"""The path of a file, and what is wrong with it."""


def manifest_faults(manifest: Manifest, next_chunk: int) -> Iterator[Fault]:
    """Ranges, bitmaps and shards that contradict each other in the manifest; no file is opened."""
    yield from _shard_faults(manifest)
    naming = {record.path for record in manifest.files("naming")}
    part_rows: dict[str, set[tuple[ChunkRange, str | None]]] = defaultdict(set)
    for record in manifest.all_files():
        if record.first_chunk < 0:
            continue
        yield from _record_faults(record, next_chunk)
        if record.kind == "neighbours" and naming_path(record.path) not in naming:
            yield record.path, "has no file that says which of its rows name a chunk"
        if record.kind == "parts":
            part_rows[record.path.rpartition("/")[0]].add((record.span, record.rows))
    for folder, rows in part_rows.items():
        if len(rows) > 1:
            yield folder, "the files of this part cover different rows"


def _shard_faults(manifest: Manifest) -> Iterator[Fault]:
    shards = manifest.shards
    spans = [ChunkRange(*pair) for pair in zip(shards.first_chunk.tolist(), shards.num_chunks.tolist(), strict=True)]
    for previous, span in pairwise([ChunkRange(0, 0), *spans]):
        if span.first_chunk < previous.end:
            yield "manifests", f"the shard at {span.first_chunk} begins inside the one before"
    covered = {kind: {record.span for record in manifest.files(kind)} for kind in CHUNK_FILES}
    for span in spans:
        if "" not in manifest.counts[span.first_chunk]:
            yield "manifests", f"the shard at {span.first_chunk} has no counts"
        for kind in CHUNK_FILES:
            if span not in covered[kind]:
                yield kind, f"the shard at {span.first_chunk} has no file of this kind"


def _record_faults(record: FileRecord, next_chunk: int) -> Iterator[Fault]:
    if KINDS[record.kind].covers == "chunks" and record.span.end > next_chunk:
        yield record.path, f"covers ids up to {record.span.end}, but only {next_chunk} ids were given"
    if record.rows is None and record.num_chunks != record.num_rows:
        yield record.path, f"has {record.num_rows} of {record.num_chunks} rows, and no row bitmap"


def row_faults(storage: Storage, records: Sequence[FileRecord]) -> Iterator[Fault]:
    """Files whose row bitmap, which can be read, is not that of their record."""
    files = VerifiedFiles(storage)
    for record in records:
        rows = files.rows(record)
        if len(rows) != record.num_rows:
            yield record.path, f"its bitmap does not have {record.num_rows} rows"
        elif rows.max_row >= record.num_chunks:
            yield record.path, f"its bitmap reaches beyond its range of {record.num_chunks} rows"


def bitmap_groups(records: Sequence[FileRecord]) -> list[tuple[FileRecord, ...]]:
    """The files of each row bitmap, by its path."""
    groups = defaultdict[str, list[FileRecord]](list)
    for record in records:
        if record.rows_path is not None:
            groups[record.rows_path].append(record)
    return [tuple(group) for _, group in sorted(groups.items())]


def compared_groups(manifest: Manifest, damaged: Collection[str]) -> list[tuple[FileRecord, ...]]:
    """The files whose contents `content_faults` can compare with their records, or with those of the same shard.

    Args:
        damaged: paths of files that cannot be read.
    """
    alone, shards = [], defaultdict[ChunkRange, list[FileRecord]](list)
    tables = defaultdict[str, list[FileRecord]](list)
    for record in manifest.all_files():
        if record.path in damaged or record.rows_path in damaged:
            continue
        if record.kind in CHUNK_FILES:
            shards[record.span].append(record)
        elif record.kind in ("vectors", "attributes"):
            alone.append((record,))
        elif record.kind in ("neighbours", "naming"):
            tables[record.path.partition("/")[2]].append(record)
    return [*alone, *map(tuple, tables.values()), *map(tuple, shards.values())]


def content_faults(
    storage: Storage, settings: Settings, group: Sequence[FileRecord], next_chunk: int
) -> Iterator[Fault]:
    """Contradictions between the contents of a group of undamaged files."""
    shard_files = {record.kind: record for record in group if record.kind in CHUNK_FILES}
    for record in group:
        if record.path.endswith(".npy") and record.kind == "vectors":
            if len(map_array(storage.local(record.path))) != record.num_rows:
                yield record.path, f"does not hold {record.num_rows} vectors"
        elif record.kind in ("attributes", "neighbours"):
            yield from _table_faults(storage, record, next_chunk)
    table_files = {record.kind: record for record in group if record.kind in ("neighbours", "naming")}
    if len(table_files) == 2:
        yield from _naming_faults(storage, table_files["neighbours"], table_files["naming"])
    if "documents" in shard_files:
        yield from _range_faults(storage, settings, shard_files)


def _table_faults(storage: Storage, record: FileRecord, next_chunk: int) -> Iterator[Fault]:
    table = read_table(storage.local(record.path))
    if table.num_rows != record.num_rows:
        yield record.path, f"{table.num_rows} rows instead of {record.num_rows}"
    elif record.kind == "neighbours":
        ids = table.column("neighbours").combine_chunks().flatten().to_numpy()
        if len(ids) and (ids.max() >= next_chunk or ids.min() < -1):
            yield record.path, "names chunks whose ids were never given"
        if not np.array_equal(
            table.column("row").to_numpy(), record.first_chunk + VerifiedFiles(storage).rows(record).present
        ):
            yield record.path, "its rows are not those of its bitmap"


def _naming_faults(storage: Storage, table: FileRecord, naming: FileRecord) -> Iterator[Fault]:
    """Whether a file has each pair of a neighbour and a row of a file of a table, in their order."""
    expected = NamedPairs.of_file(storage.local(table.path), table.span).groups()
    for ours, stored in zip_longest(expected, iterate_row_groups(storage.local(naming.path))):
        if ours is None or stored is None or not ours.equals(stored):
            yield naming.path, f"does not have the neighbours and rows of {table.path}"
            return


def _range_faults(storage: Storage, settings: Settings, files: Mapping[str, FileRecord]) -> Iterator[Fault]:
    """Contradictions between the files of one range and its documents, and among these files."""
    record = files["documents"]
    layout = DocumentLayout.from_table(read_table(storage.local(record.path), LAYOUT_COLUMNS))
    ends = layout.first_row + layout.num_chunks
    overlap = bool((layout.first_row[1:] < ends[:-1]).any())
    if overlap or (len(ends) and (layout.first_row[0] < 0 or ends[-1] > record.num_chunks)):
        yield record.path, "its documents overlap, or are outside of its range"
        return
    if "chunks" in files:
        yield from _chunk_faults(storage, settings, layout, files)
    if "ids" in files:
        rows = map_array(storage.local(files["ids"].path))["row"]
        if len(np.setdiff1d(layout.first_row, rows)):
            yield files["ids"].path, "lacks documents of its range"


def _chunk_faults(
    storage: Storage, settings: Settings, layout: DocumentLayout, files: Mapping[str, FileRecord]
) -> Iterator[Fault]:
    """The first contradiction of a chunks file with the documents, or of tokens and hashes with the chunks."""
    chunks, start = files["chunks"], 0
    present = VerifiedFiles(storage).rows(chunks).present
    arrays = {kind: map_array(storage.local(files[kind].path)) for kind in ("tokens", "hashes") if kind in files}
    for kind, array in arrays.items():
        if len(array) != files[kind].num_rows or files[kind].rows != chunks.rows:
            yield files[kind].path, "does not hold the rows of its chunks"
            return
    for group in iterate_row_groups(storage.local(chunks.path), ["document", "tokens", "text"]):
        positions = slice(start, start + group.num_rows)
        start += group.num_rows
        blocks = {kind: array[positions] for kind, array in arrays.items()}
        if fault := _group_fault(settings, layout, group, present[positions], blocks):
            kind, what = fault
            yield files[kind].path, what
            return
    if start != len(present):
        yield chunks.path, f"{start} rows instead of {len(present)}"


def _group_fault(
    settings: Settings, layout: DocumentLayout, group: pa.Table, rows: Int64Array, blocks: Mapping[str, AnyArray]
) -> Fault | None:
    """What is wrong with one row group of chunks, and with tokens and hashes of the same rows; with the kind of the file."""
    document = layout.document_of(rows)
    if (
        len(rows) < group.num_rows
        or (document < 0).any()
        or (group.column("document").to_numpy() != layout.first_row[document]).any()
    ):
        return "chunks", "its chunks are not those of its documents"
    lengths, padded, is_token = padded_tokens(group.column("tokens").combine_chunks(), settings)
    if (lengths != layout.lengths(rows, settings.chunk_tokens)).any():
        return "chunks", "the lengths of its chunks are not those of its documents"
    if "tokens" in blocks and (blocks["tokens"] != padded)[is_token].any():
        return "tokens", "its tokens are not those of its chunks"
    if "hashes" in blocks and (blocks["hashes"] != text_hashes(group.column("text").combine_chunks())).any():
        return "hashes", "its hashes are not those of its chunks' texts"
    return None


def padded_tokens(tokens: pa.LargeListArray, settings: Settings) -> tuple[Int64Array, AnyArray, BoolArray]:
    """Lengths (N,), tokens (N, m) padded with the pad token, and which of these are tokens (N, m)."""
    lengths = tokens.value_lengths().to_numpy()
    padded = np.full((len(lengths), settings.chunk_tokens), settings.pad_token, dtype=settings.token_dtype)
    is_token = np.arange(settings.chunk_tokens) < lengths[:, None]
    if (lengths <= settings.chunk_tokens).all():
        padded[is_token] = tokens.flatten().to_numpy()
    return lengths, padded, is_token
