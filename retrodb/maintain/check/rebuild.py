"""Rebuild files of a shard, or of a neighbour table, from its other files. Digests prove that the bytes are those of before.

Legend: N chunks of a range, M documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retrodb.format.arrays import growing_array, save_array
from retrodb.format.document_keys import HASH_DTYPE, id_entries, key_of, record_hash, sort_ids, text_hashes
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import FileRecord
from retrodb.format.settings import Settings
from retrodb.maintain.check.structure import padded_tokens
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.naming import NamedPairs, naming_path
from retrodb.view.view import View

REBUILDABLE = ("tokens", "hashes", "ids", "naming")
"""Contents that follow from the chunks and documents of the same range, or from the file of a neighbour table."""


def content_of(record: FileRecord) -> str:
    """The content of a file: its kind; for a file of a query set, the kind that it would have in the database."""
    return record.path.rpartition("/")[2].partition(".")[0] if record.kind == "queries" else record.kind


def rebuild(view: View, record: FileRecord, out: Path) -> None:
    """Write the file of a damaged record again.

    Raises:
        MissingFileError, DamagedFileError: for the files that it is rebuilt from.
    """
    if record.kind == "naming":
        table = table_file(view, record)
        NamedPairs.of_file(view.files.open(table), table.span).write(out)
        return
    chunks = view.query_set(record.name) if record.kind == "queries" else view.chunks
    functions = {"tokens": _rebuild_tokens, "hashes": _rebuild_hashes, "ids": _rebuild_ids}
    functions[content_of(record)](chunks, record, out)


def table_file(view: View, naming: FileRecord) -> FileRecord:
    """The file of a neighbour table whose pairs a file has."""
    files = view.manifest.files("neighbours", naming.name)
    return next(record for record in files if naming_path(record.path) == naming.path)


def _rebuild_tokens(chunks: ChunkSet, record: FileRecord, out: Path) -> None:
    settings: Settings = chunks.settings
    with growing_array(out, np.dtype(settings.token_dtype), (settings.chunk_tokens,)) as append:
        for group in iterate_row_groups(_chunks_file(chunks, record), ["tokens"]):
            append(padded_tokens(group.column("tokens").combine_chunks(), settings)[1])


def _rebuild_hashes(chunks: ChunkSet, record: FileRecord, out: Path) -> None:
    with growing_array(out, HASH_DTYPE) as append:
        for group in iterate_row_groups(_chunks_file(chunks, record), ["text"]):
            append(text_hashes(group.column("text").combine_chunks()))


def _rebuild_ids(chunks: ChunkSet, record: FileRecord, out: Path) -> None:
    """The entries of all documents of the range. The keys that compaction kept of dropped documents are not known any more."""
    keys, hashes, rows = [], [], []
    documents = chunks.file("documents", *record.span)
    for key, record_digest, first_row in _documents(chunks, documents):
        keys.append(key)
        hashes.append(record_digest)
        rows.append(first_row)
    save_array(out, sort_ids(id_entries(keys, hashes, rows)))


def _documents(chunks: ChunkSet, file: FileRecord) -> Iterator[tuple[int, int, int]]:
    """The key, the hash and the first row of every document of a file."""
    for document in chunks.documents_table(file).to_pylist():
        first_chunk, num_key_chunks = file.first_chunk + document["first_row"], document["num_key_chunks"]
        texts = chunks.texts(np.arange(first_chunk, first_chunk + document["num_chunks"]), deleted_too=True)
        split = num_key_chunks or len(texts)
        value = "".join(texts[split:]) if num_key_chunks else None
        digest = record_hash("".join(texts[:split]), value, document["metadata"].encode())
        yield key_of(document["source"], document["doc_id"]), digest, document["first_row"]


def _chunks_file(chunks: ChunkSet, record: FileRecord) -> Path:
    return chunks.files.open(chunks.file("chunks", *record.span))
