"""Files of a shard made anew from the others: the same bytes as before, which their digests prove.

Legend: N chunks of a range, M documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrodb.format.arrays import growing_array, save_array
from retrodb.format.ids import HASH_DTYPE, id_entries, key_of, record_hash, sort_ids, text_hashes
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import FileRecord
from retrodb.format.settings import Settings
from retrodb.maintain.check.structure import padded_tokens
from retrodb.view.chunk_set import ChunkSet

REBUILT = ("tokens", "hashes", "ids")
"""Kinds of files that chunks and documents say all of."""


def content_of(record: FileRecord) -> str:
    """What is in a file: its kind, or of a query set's file the kind that it would be in the database."""
    return record.path.rpartition("/")[2].partition(".")[0] if record.kind == "queries" else record.kind


def rebuild(chunks: ChunkSet, record: FileRecord, content: str, out: Path) -> None:
    """Write the file of a damaged record anew.

    Raises:
        MissingFileError, DamagedFileError: for what it is made from.
    """
    {"tokens": _tokens, "hashes": _hashes, "ids": _ids}[content](chunks, record, out)


def _tokens(chunks: ChunkSet, record: FileRecord, out: Path) -> None:
    settings: Settings = chunks.settings
    with growing_array(out, np.dtype(settings.token_dtype), (settings.chunk_tokens,)) as append:
        for group in iterate_row_groups(_source(chunks, record), ["tokens"]):
            append(padded_tokens(group.column("tokens").combine_chunks(), settings)[1])


def _hashes(chunks: ChunkSet, record: FileRecord, out: Path) -> None:
    with growing_array(out, HASH_DTYPE) as append:
        for group in iterate_row_groups(_source(chunks, record), ["text"]):
            append(text_hashes(group.column("text").combine_chunks()))


def _ids(chunks: ChunkSet, record: FileRecord, out: Path) -> None:
    """All documents of the range; keys that compaction kept of documents that are gone are not known any more."""
    keys, hashes, rows = [], [], []
    file = chunks.file("documents", record.first_chunk, record.num_chunks)
    for document, text, value in _documents(chunks, file):
        keys.append(key_of(document["source"], document["doc_id"]))
        hashes.append(record_hash(text, value, document["metadata"].encode()))
        rows.append(document["first_row"])
    save_array(out, sort_ids(id_entries(keys, hashes, rows)))


def _documents(chunks: ChunkSet, file: FileRecord) -> Iterator[tuple[dict[str, Any], str, str | None]]:
    for document in chunks.documents_table(file).to_pylist():
        first, keys = file.first_chunk + document["first_row"], document["num_key_chunks"]
        texts = chunks.texts(np.arange(first, first + document["num_chunks"]), deleted_too=True)
        split = keys or len(texts)
        yield document, "".join(texts[:split]), "".join(texts[split:]) if keys else None


def _source(chunks: ChunkSet, record: FileRecord) -> Path:
    return chunks.files.open(chunks.file("chunks", record.first_chunk, record.num_chunks))
