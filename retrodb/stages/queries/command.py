"""Stage queries, for documents: a query set of documents that are not in the database, such as a validation set.

They are cut into chunks as the database's own documents are. Each row of the set is a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.corpus.chunking import Chunks, chunk_documents
from retrodb.dedup.testset_items import read_test_items
from retrodb.errors import UsageError
from retrodb.format.entries import QueriesEntry
from retrodb.stages.context import Context
from retrodb.stages.ingest.shard import write_shards
from retrodb.stages.ingest.tokenize import load_tokenizer, query_paths
from retrodb.stages.queries.query_set import QueriesResult, check_name, commit_queries, document_batch
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import digest_bytes
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_VERSION = 1


@dataclass(frozen=True)
class QueriesPlan:
    """The documents of a query set, read and cut into chunks."""

    view: View
    name: str
    doc_ids: Sequence[str]
    texts: pa.LargeStringArray
    chunks: Chunks
    entry: QueriesEntry
    result: QueriesResult  # that a dry run prints

    @property
    def is_stored(self) -> bool:
        """Whether the database has this set already."""
        return self.view.snapshot.entry(QueriesEntry, self.name) == self.entry


def run_add_queries(
    context: Context, name: str, files: Sequence[Path], *, text_template: str | None = None, dry_run: bool = False
) -> QueriesResult:
    """Add the documents of files as a query set. It replaces an older set of the same name.

    Args:
        text_template: how fields of a record become a text.

    Raises:
        UsageError: for an invalid name, or files without documents.
        InputError: for a file that cannot be read.
        ConflictError: when the query set changed since the plan.
    """
    plan = plan_add_queries(context, name, files, text_template=text_template)
    return plan.result if dry_run else execute_add_queries(context, plan)


def plan_add_queries(
    context: Context, name: str, files: Sequence[Path], *, text_template: str | None = None
) -> QueriesPlan:
    """Read the files and cut their documents into chunks, in memory. Raises UsageError and InputError as `run_add_queries`."""
    check_name(name)
    view = context.view()
    items = read_test_items(list(files), text_template)
    if not len(items):
        raise UsageError("the files hold no documents", where=str(files[0]))
    content = digest_bytes("\0".join([*items.ids, *items.texts.to_pylist()]).encode()).sha256.hex()
    tokenizer = load_tokenizer(context.storage.url, view.settings.tokenizer_sha256)
    chunks = chunk_documents(items.texts, None, tokenizer, view.settings.chunk_tokens, num_threads=1)
    result = QueriesResult(
        view.snapshot.number, name, len(items), len(chunks.document), int(chunks.num_tokens.sum()), dry_run=True
    )
    return QueriesPlan(view, name, items.ids, items.texts, chunks, QueriesEntry("queries add", content), result)


def execute_add_queries(context: Context, plan: QueriesPlan) -> QueriesResult:
    """Write and commit the query set, unless the database has it already."""
    if plan.is_stored:
        return replace(plan.result, dry_run=False)
    transaction = Transaction.open(
        context,
        plan.view,
        "queries",
        conflict_keys.queries(plan.name),
        plan={"version": STAGE_VERSION, "name": plan.name, "entry": plan.entry},
        arguments={"name": plan.name},
    )
    metadata = ["{}"] * len(plan.doc_ids)
    batch = document_batch(plan.name, plan.doc_ids, plan.texts, metadata, plan.chunks)
    shards = write_shards(
        context.storage,
        iter([batch]),
        plan.view.settings,
        source=plan.name,
        clock=transaction.run.clock,
        path=query_paths(transaction.run.id, plan.name),
    )
    files = [(file, shard.num_chunks) for shard in shards for file in shard.files]
    return commit_queries(transaction, plan.entry, plan.result, files)
