"""The proof of a purge: every file in the database's folder is decoded and searched for traces of the purged documents.

What live documents have in common with a purged one (a quotation, a licence, the same article under another id) belongs to them
and is not counted. These documents are named instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retrodb.engine.progress import Progress
from retrodb.errors import MissingFileError
from retrodb.maintain.purge.scanner import RemainingTrace, TraceScanner
from retrodb.maintain.purge.traces import Traces
from retrodb.store.storage import Storage
from retrodb.view.view import View

_MAX_SHOWN = 10  # live documents that are named because they share text
_SKIPPED = ("purged/", "locks/", "retrodb.toml", "tokenizer.json")
"""The keys of purged documents, the holders of locks, and files that are older than every document and never change."""


@dataclass(frozen=True)
class SharingDocument:
    """A live document that has text in common with a purged one."""

    source: str
    doc_id: str
    num_shingles: int  # in common


@dataclass(frozen=True)
class Proof:
    """What was searched for, how much was searched, and what remains."""

    num_files: int  # searched
    size_bytes: int  # of these files
    num_traces: Mapping[str, int]  # searched for, by kind
    num_compared: Mapping[str, int]  # values that were compared with the traces, by kind
    remaining: tuple[RemainingTrace, ...]  # empty when nothing is left
    num_sharing_documents: int  # live documents that contain the same 13 words in a row
    sharing_documents: tuple[SharingDocument, ...]  # those that share most


def run_proof(view: View, traces: Traces, id_strings: frozenset[str], progress: Progress, *, skip: str = "") -> Proof:
    """Search all files of a database.

    Args:
        id_strings: the ids that the traces are hashes of; strings in files are compared with them.
        skip: files whose path begins with this are not searched: those of the traces themselves.
    """
    skipped = (*_SKIPPED, skip) if skip else _SKIPPED
    paths = [path.removeprefix("./") for path in view.storage.list("")]
    paths = [path for path in paths if not path.startswith(skipped)]
    sizes = [_size_bytes(view.storage, path) for path in paths]
    scanner = TraceScanner(view, traces, id_strings)
    with progress.stage("proof", sum(sizes), "B") as bar:
        for path, size in zip(paths, sizes, strict=True):
            scanner.scan_file(path)
            bar.advance(size)
    most_common = scanner.shared_shingles.most_common(_MAX_SHOWN)
    documents = view.chunks.documents(np.array([first_chunk for first_chunk, _ in most_common], np.int64))
    return Proof(
        num_files=len(paths),
        size_bytes=sum(sizes),
        num_traces={kind: len(values) for kind, values in traces.values.items()},
        num_compared=dict(scanner.num_compared),
        remaining=tuple(scanner.remaining()),
        num_sharing_documents=len(scanner.shared_shingles),
        sharing_documents=tuple(
            SharingDocument(document["source"], document["doc_id"], num_shingles)
            for document, (_, num_shingles) in zip(documents, most_common, strict=True)
            if document is not None
        ),
    )


def _size_bytes(storage: Storage, path: str) -> int:
    try:
        return storage.local(path).stat().st_size
    except MissingFileError:  # another command deleted it
        return 0
