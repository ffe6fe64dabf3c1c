"""The averages of a database: what a larger one of the same kind of text would have."""

from __future__ import annotations

import numpy as np

from retrodb.errors import MissingStep
from retrodb.maintain.plan.figures import CorpusAverages
from retrodb.maintain.stats import read_stats
from retrodb.view.view import View

_SAMPLED_CHUNKS = 4096  # whose text is read


def averages_of(view: View, origin: str) -> CorpusAverages:
    """The averages of the documents, and of the files of chunks and documents, of a snapshot.

    Raises:
        MissingStep: there is no document.
    """
    stats, sizes = read_stats(view), view.manifest.size_by_kind()
    if not stats.num_tokens:
        raise MissingStep("the database has no documents to plan by", remedy="Ingest some first, or plan without DB.")
    ids = np.linspace(0, view.snapshot.next_chunk - 1, min(_SAMPLED_CHUNKS, view.snapshot.next_chunk)).astype(np.int64)
    text_bytes = sum(len(text.encode()) for text in view.chunks.texts(ids, deleted_too=True))
    num_tokens = int(view.chunks.gather_tokens(ids, deleted_too=True).lengths.sum())
    duplicates = stats.num_deleted_chunks_by_reason.get("near-duplicate", 0)
    return CorpusAverages(
        text_bytes_per_token=text_bytes / max(1, num_tokens),
        tokens_per_document=stats.num_tokens / stats.num_documents,
        chunks_bytes_per_token=sizes["chunks"][1] / stats.num_tokens,
        documents_bytes=sizes["documents"][1] / stats.num_documents,
        token_bytes=np.dtype(view.settings.token_dtype).itemsize,
        pair_bytes=sizes.get("duplicates", (0, 0))[1] / stats.num_documents,
        duplicate_fraction=duplicates / max(1, stats.num_chunks),
        origin=origin,
    )
