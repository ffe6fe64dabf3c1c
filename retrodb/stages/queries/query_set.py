"""The files and the entry of a query set: what documents and packed sequences have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from retrodb.corpus.chunking import Chunks
from retrodb.errors import UsageError
from retrodb.format.document_keys import content_hash, id_entries, key_of, record_hash
from retrodb.format.entries import QueriesEntry
from retrodb.format.records import FileRecord
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.ingest.read_inputs import spool_schema
from retrodb.stages.ingest.shard import SHARD_KINDS, DocumentBatch
from retrodb.stages.transaction import Transaction
from retrodb.view.view import SELF

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class QueriesResult:
    """What a query set contains."""

    snapshot: int
    query_set: str
    num_documents: int  # or sequences
    num_rows: int  # chunks: those of role text get neighbours
    num_tokens: int
    dry_run: bool = False
    num_names: int = 0  # different names of documents that the sequences come with
    num_known_names: int = 0  # of these, names of documents in the database


def check_name(name: str) -> None:
    """Raises UsageError for an invalid name of a query set."""
    if not name or "/" in name or name.startswith(".") or name in (SELF, HELD_OUT_SET):
        raise UsageError(f"'{name}' is not a valid name of a query set", remedy="Give another short name without '/'.")


def document_batch(
    name: str, doc_ids: Sequence[str], texts: pa.LargeStringArray, metadata: Sequence[str], chunks: Chunks
) -> DocumentBatch:
    """Documents of a query set with their chunks, as the shard writer takes them.

    Args:
        metadata: a JSON object per document.
    """
    import pyarrow as pa

    plain_texts = texts.to_pylist()
    columns = {
        "doc_id": pa.array(list(doc_ids), pa.string()),
        "text": texts,
        "value": pa.nulls(len(doc_ids), pa.large_string()),
        "metadata": pa.array(list(metadata), pa.large_string()),
        "content_hash": pa.array([content_hash(text, None) for text in plain_texts], pa.binary(16)),
    }
    keys = [key_of(name, doc_id) for doc_id in doc_ids]
    hashes = [record_hash(text, None, json.encode()) for text, json in zip(plain_texts, metadata, strict=True)]
    ids = id_entries(keys, hashes, list(range(len(keys))))
    return DocumentBatch(pa.table(columns, schema=spool_schema()), ids, chunks)


def commit_queries(
    transaction: Transaction, entry: QueriesEntry, result: QueriesResult, files: Sequence[tuple[FileRecord, int]]
) -> QueriesResult:
    """Commit the files of a query set, in place of an older set of the same name.

    Args:
        files: each with the number of chunks of its shard; the files of a shard follow each other.
    """
    name = result.query_set
    first_row = 0
    for number, (file, num_chunks) in enumerate(files, 1):
        transaction.files.append(replace(file, kind="queries", name=name, first_chunk=first_row))
        first_row += num_chunks if number % len(SHARD_KINDS) == 0 else 0
    transaction.drop_files(transaction.view.manifest.files("queries", name))
    transaction.set_entry(name, entry)
    transaction.counts = {"documents": result.num_documents, "rows": result.num_rows}
    return replace(result, snapshot=transaction.commit().number, dry_run=False)
