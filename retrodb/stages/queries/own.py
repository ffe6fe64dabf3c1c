"""Packed sequences of the database's own documents.

The live documents follow each other by id, each with the end-of-document token of the tokenizer if it has one. The last
sequence may be shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retrodb.corpus.special_tokens import special_ids
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import QueriesEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.format.records import FileRecord
from retrodb.format.settings import parse_settings
from retrodb.stages.queries.known_tokens import KnownTokens
from retrodb.stages.queries.packing import PackedSequence
from retrodb.store.digest import identity
from retrodb.store.open_storage import open_storage
from retrodb.store.snapshots import read_snapshot
from retrodb.view.view import View


@dataclass(frozen=True)
class OwnPacking:
    """How the database's documents are packed."""

    kind: ClassVar[str] = "sequences"
    seq_length: int  # tokens of a sequence

    def entry(self, tokenizer: str) -> QueriesEntry:
        """The entry of a query set of these sequences, without its content."""
        packing = to_plain_object(self)
        return QueriesEntry(self.kind, seq_length=self.seq_length, tokenizer=tokenizer, sequences=packing)

    def state(self, view: View, known: KnownTokens) -> str:
        """A digest of everything that the sequences follow from. Their tokens are read later."""
        del known
        kinds = ("documents", "tokens", "tombstones")
        return identity([record.path for kind in kinds for record in view.manifest.files(kind)])


class OwnSequences:
    """The packed sequences of a snapshot."""

    def __init__(self, view: View, packing: OwnPacking) -> None:
        self._view, self._length = view, packing.seq_length
        special = special_ids(view.storage.read("tokenizer.json"), view.settings.vocab_size)
        self._end = special.end if special.end < view.settings.vocab_size else None  # end-of-document token
        ranges = view.chunks.ranges
        self._ends = np.cumsum([int(self._live_chunks(record)[1].sum()) for record in ranges], dtype=np.int64)

    @classmethod
    def open(cls, url: str, snapshot: int, packing: OwnPacking) -> OwnSequences:
        """The sequences of a database as of a snapshot."""
        storage = open_storage(url)
        settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
        return cls(View(storage, settings, read_snapshot(storage, snapshot)), packing)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return -(-self.num_tokens // self._length)

    def read(self, start: int, stop: int) -> Iterator[PackedSequence]:
        """Sequences number `start` up to `stop`."""
        first, last = start * self._length, min(stop * self._length, self.num_tokens)
        tokens, document_ids = self._stream(first, last)
        for number, begin in enumerate(range(0, last - first, self._length), start):
            sequence = slice(begin, begin + self._length)
            documents = self._view.chunks.documents(np.unique(document_ids[sequence]))
            names = [f"{document['source']}/{document['doc_id']}" for document in documents if document]
            yield PackedSequence(tokens[sequence], names, self._view.storage.url, f"sequence {number}")

    def _stream(self, first: int, last: int) -> tuple[Int64Array, Int64Array]:
        """The tokens from `first` up to `last` of all, and the first chunk id of the document of each."""
        parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for record, end in zip(self._view.chunks.ranges, self._ends.tolist(), strict=True):
            ids, sizes = self._live_chunks(record)
            bounds = end - int(sizes.sum()) + np.concatenate(([0], np.cumsum(sizes)))
            low = max(int(np.searchsorted(bounds, first, side="right")) - 1, 0)
            high = min(int(np.searchsorted(bounds, last)), len(ids))
            if low < high:
                wanted = slice(max(first - int(bounds[low]), 0), max(last - int(bounds[low]), 0))
                tokens, document_ids = self._gather(ids[low:high], sizes[low:high])
                parts.append((tokens[wanted], document_ids[wanted]))
        return np.concatenate([t for t, _ in parts]), np.concatenate([d for _, d in parts])

    def _live_chunks(self, record: FileRecord) -> tuple[Int64Array, Int64Array]:
        """The live chunks of a range, and the number of tokens of each with an end-of-document token after the last."""
        chunks = self._view.chunks
        ids = record.first_chunk + np.flatnonzero(chunks.live_mask(*record.span))
        documents = chunks.document_ids(ids)
        is_last = np.append(np.diff(documents) != 0, True)[: len(ids)]
        return ids, chunks.lengths(ids) + (is_last if self._end is not None else 0)

    def _gather(self, ids: Int64Array, sizes: Int64Array) -> tuple[Int64Array, Int64Array]:
        batch = self._view.chunks.gather_tokens(ids)
        m = batch.tokens.shape[1]
        tokens = np.zeros((len(ids), m + 1), dtype=np.int64)
        tokens[:, :m] = batch.tokens
        ended = np.flatnonzero(sizes > batch.lengths)
        tokens[ended, batch.lengths[ended]] = self._end or 0
        return tokens[np.arange(m + 1) < sizes[:, None]], np.repeat(self._view.chunks.document_ids(ids), sizes)
