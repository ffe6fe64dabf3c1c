"""Query sets: documents that want neighbours but are not in the database, such as a validation set.

They are cut into chunks as the database's own are; a row of the set is a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrodb.corpus.chunking import chunk_documents
from retrodb.dedup.testset_items import read_test_items
from retrodb.engine.run import Run, open_run
from retrodb.errors import UsageError
from retrodb.format.entries import QueriesEntry
from retrodb.format.ids import content_hash, id_entries, key_of, record_hash
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.ingest.read_inputs import spool_schema
from retrodb.stages.ingest.shard import SHARD_KINDS, Batch, write_shards
from retrodb.stages.ingest.tokenize import load_tokenizer, query_paths
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import digest_bytes
from retrodb.view.view import SELF, View

STAGE_VERSION = 1


@dataclass(frozen=True)
class QueriesResult:
    """What a query set became."""

    snapshot: int
    query_set: str
    documents: int
    rows: int  # chunks: those of role text want neighbours
    tokens: int
    dry_run: bool = False


def run_add_queries(
    context: Context, name: str, files: Sequence[Path], *, text_template: str | None = None, dry_run: bool = False
) -> QueriesResult:
    """Register the documents of files as a query set; an older set of the same name is replaced.

    Raises:
        UsageError, InputError: for a name or files that cannot be meant.
    """
    check_name(name)
    view = context.view()
    items = read_test_items(list(files), text_template)
    if not len(items):
        raise UsageError("the files hold no documents", where=str(files[0]))
    content = digest_bytes("\0".join([*items.ids, *items.texts.to_pylist()]).encode()).sha256.hex()
    entry = QueriesEntry("queries add", content)
    run = open_run(context.storage, "queries", {"version": STAGE_VERSION, "name": name, "entry": entry}, context.clock)
    settings = view.settings
    texts = items.texts
    tokenizer = load_tokenizer(context.storage.url, settings.tokenizer_sha256)
    chunks = chunk_documents(texts, None, tokenizer, settings.chunk_tokens, num_threads=1)
    result = QueriesResult(
        view.snapshot.number, name, len(items), len(chunks.document), int(chunks.num_tokens.sum()), dry_run
    )
    if dry_run or view.snapshot.entry(QueriesEntry, name) == entry:
        return result
    batch = Batch(_documents(items.ids, texts), _ids(name, items.ids, texts), chunks)
    shards = write_shards(
        context.storage,
        iter([batch]),
        settings,
        source=name,
        clock=run.clock,
        path=query_paths(run.id, name),
    )
    written = [(file, shard.num_chunks) for shard in shards for file in shard.files]
    return commit_queries(context, view, run, entry, result, written)


def check_name(name: str) -> None:
    """Raises UsageError for a name that no query set can have."""
    if not name or "/" in name or name.startswith(".") or name in (SELF, HELD_OUT_SET):
        raise UsageError(f"'{name}' cannot name a query set", remedy="Give another short name without '/'.")


def commit_queries(
    context: Context,
    view: View,
    run: Run,
    entry: QueriesEntry,
    result: QueriesResult,
    files: Sequence[tuple[FileRecord, int]],
) -> QueriesResult:
    """Make the files of a query set visible, in place of an older set of the same name.

    Args:
        files: each with the number of chunks of its shard; the files of a shard follow each other.
    """
    placed: list[FileRecord] = []
    first = 0
    for number, (file, num_chunks) in enumerate(files, 1):
        placed.append(replace(file, kind="queries", name=result.query_set, first_chunk=first))
        first += num_chunks if number % len(SHARD_KINDS) == 0 else 0
    drops = [DropRecord(OP_DROP_FILE, record.path) for record in view.manifest.files("queries", result.query_set)]
    change = Change(
        transaction=run.id,
        command="queries",
        arguments={"name": result.query_set},
        clock=run.clock,
        conflict_keys=conflict_keys.queries(result.query_set),
        files=placed,
        drops=drops,
        entries={f"queries/{result.query_set}": entry},
        counts={"documents": result.documents, "rows": result.rows},
    )
    return replace(result, snapshot=commit(context.storage, view.snapshot, change).number)


def _documents(ids: Sequence[str], texts: pa.LargeStringArray) -> pa.Table:
    columns = {
        "doc_id": pa.array(list(ids)),
        "text": texts,
        "value": pa.nulls(len(ids), pa.large_string()),
        "metadata": pa.array(["{}"] * len(ids), pa.large_string()),
        "content_hash": pa.array([content_hash(text, None) for text in texts.to_pylist()], pa.binary(16)),
    }
    return pa.table(columns, schema=spool_schema())


def _ids(name: str, ids: Sequence[str], texts: pa.LargeStringArray) -> Any:
    keys = [key_of(name, doc_id) for doc_id in ids]
    hashes = [record_hash(text, None, b"{}") for text in texts.to_pylist()]
    return id_entries(keys, hashes, list(range(len(keys))))
