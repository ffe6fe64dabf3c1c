"""Export for NeMo's RETRO: `KNNIndex` and `MMapRetrievalIndexedDataset`.

    retrieval.{bin,idx}   the database; a document is a run of chunks and a chunk of padding
    train.{bin,idx}       a document of padding, then the rows of the query set without that padding
    knn.idx               for every training chunk its neighbours' chunk ids in `retrieval`, -1 for none

The reader takes the chunk after a neighbour as its continuation, and -1 as the last chunk. So the last document is only padding.
Of the training data it asserts that document 0 ends in padding or in the end of a document, as NeMo's own builder leaves it: so
document 0 is a chunk of padding without neighbours.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.corpus.special_tokens import special_ids
from retrodb.export.arrays import SpanDigest
from retrodb.export.export_file import ExportFile, FileRange, RangedPiece, ranged_file
from retrodb.export.export_source import ExportSource
from retrodb.export.limits import INT32_MAX, check_count
from retrodb.export.padding import IntegerDtype, padded_chunk_tokens, token_dtype
from retrodb.export.positions import ExportPositions, PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.chunk_set import ChunkSet

_KNN_MAGIC, _IDX_MAGIC = b"KNNRETM\x00\x00", b"MMIDRET\x00\x00"
_DTYPE_CODES = {"int32": 4, "uint16": 8}


def nemo_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export.

    Raises:
        UsageError: when a document has more tokens than a signed 32-bit number can count.
    """
    return [
        *_Dataset(source, "retrieval", source.database, source.chunks, source.chunks_digest, is_retrieval=True).files(),
        *_Dataset(source, "train", source.queries, source.rows, source.rows_digest, is_retrieval=False).files(),
        _knn_file(source),
    ]


def _knn_file(source: ExportSource) -> ExportFile:
    """The neighbours. The first row, of the document of padding, has none."""
    none = np.full(source.k, -1, dtype=np.int64).tobytes()
    head = _KNN_MAGIC + struct.pack("<QQQQ", 1, source.k, 1 + len(source.rows), 0) + none

    def piece(span: PositionSpan) -> RangedPiece:
        def blocks() -> Iterator[AnyArray]:
            return (source.neighbours(ids) for ids in span.blocks())

        part = FileRange(len(head) + span.first * len(none), len(span) * len(none), blocks)
        return RangedPiece(partial(source.neighbours_digest, span), [part])

    return ranged_file("knn.idx", [piece(span) for span in source.rows.spans], head=head)


class _Dataset:
    """The two files of one chunk set.

    The documents are the runs of chunks and one of padding: the last of the database, whose other documents end in a chunk of
    padding too, and the first of the training data.
    """

    def __init__(
        self,
        source: ExportSource,
        name: str,
        chunks: ChunkSet,
        positions: ExportPositions,
        inputs_digest: SpanDigest,
        *,
        is_retrieval: bool,
    ) -> None:
        self._name, self._chunks, self._positions, self._digest = name, chunks, positions, inputs_digest
        self._is_retrieval = is_retrieval
        self._pad = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size).pad
        self._m = source.chunk_tokens
        self._dtype: IntegerDtype = token_dtype(max(self._pad, source.settings.vocab_size - 1))
        self._chunk_bytes = self._m * self._dtype.itemsize
        longest = (positions.longest_run + is_retrieval) * self._m
        remedy = "Split long documents before 'retrodb ingest', or export with --to arrays."
        check_count("tokens in a document", longest, INT32_MAX, "nemo", remedy)

    def files(self) -> list[ExportFile]:
        """The tokens and their index."""
        return [self._tokens(), self._index()]

    def _tokens(self) -> ExportFile:
        padding = np.full(self._m, self._pad, dtype=self._dtype)

        def piece(span: PositionSpan) -> RangedPiece:
            def blocks() -> Iterator[AnyArray]:
                for ids, ends in span.blocks_with_ends():
                    tokens = padded_chunk_tokens(self._chunks, ids, self._pad, self._dtype)
                    yield np.insert(tokens, ends, padding, axis=0) if self._is_retrieval else tokens

            size = len(span) + span.record.num_runs * self._is_retrieval
            part = FileRange(self._first_stored(span) * self._chunk_bytes, size * self._chunk_bytes, blocks)
            return RangedPiece(partial(self._digest, span), [part])

        head = b"" if self._is_retrieval else padding.tobytes()
        pieces = [piece(span) for span in self._positions.spans]
        if self._is_retrieval:
            end = (len(self._positions) + self._positions.num_runs) * self._chunk_bytes
            tail = FileRange(end, 2 * self._chunk_bytes, lambda: [np.tile(padding, (2, 1))])
            pieces.append(RangedPiece(lambda: "tail", [tail]))
        return ranged_file(f"{self._name}.bin", pieces, head=head)

    def _first_stored(self, span: PositionSpan) -> int:
        """The chunks, with those of padding, that are stored before those of a span."""
        return span.first + (span.first_run if self._is_retrieval else 1)

    def _index(self) -> ExportFile:
        """For all documents their tokens, where they begin, and their first chunk ids; and where every chunk begins."""
        num_documents, num_chunks = self._positions.num_runs + 1, len(self._positions) + 1
        head = _IDX_MAGIC + struct.pack(
            "<LLBQQQB",
            1,
            self._m,
            _DTYPE_CODES[self._dtype.name],
            num_documents,
            self._m,
            num_chunks,
            self._is_retrieval,
        )
        counts = (4 * num_documents, 8 * num_documents, 8 * num_documents, 8 * num_chunks)
        columns = len(head) + np.cumsum([0, *counts[:-1]], dtype=np.int64)  # where each column begins
        first = 0 if self._is_retrieval else 1  # documents and chunks of padding before the runs
        pieces = [
            RangedPiece(partial(str, span.record.digest), self._index_ranges(columns, _DocumentsOfSpan.of(span, first)))
            for span in self._positions.spans
        ]
        end = (num_documents - 1, num_chunks - 1) if self._is_retrieval else (0, 0)
        padding = _DocumentsOfSpan(*end, 1, 1, lambda: np.ones(1, dtype=np.int64))
        of_padding = RangedPiece(lambda: "padding", self._index_ranges(columns, padding))
        return ranged_file(f"{self._name}.idx", [*pieces, of_padding], head=head)

    def _index_ranges(self, columns: Int64Array, documents: _DocumentsOfSpan) -> list[FileRange]:
        """The ranges of the four columns for some documents."""
        stored_before = documents.first_chunk + (documents.first_document if self._is_retrieval else 0)

        def first_stored() -> Int64Array:  # place of each document's first chunk among those that are stored
            stored = documents.sizes() + self._is_retrieval
            return stored_before + np.cumsum(stored) - stored

        def tokens() -> AnyArray:
            return (documents.sizes() * self._m).astype(np.int32)

        def first_bytes() -> AnyArray:
            return first_stored() * self._chunk_bytes

        def first_chunks() -> AnyArray:
            sizes = documents.sizes()
            return documents.first_chunk + np.cumsum(sizes) - sizes

        def addresses() -> AnyArray:
            sizes = documents.sizes()
            in_document = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            return (np.repeat(first_stored(), sizes) + in_document) * self._chunk_bytes

        of_documents, of_chunks = documents.first_document, documents.first_chunk
        shapes = (
            (tokens, 4 * of_documents, 4 * documents.num_documents),
            (first_bytes, 8 * of_documents, 8 * documents.num_documents),
            (first_chunks, 8 * of_documents, 8 * documents.num_documents),
            (addresses, 8 * of_chunks, 8 * documents.num_chunks),
        )
        return [
            FileRange(int(columns[number]) + offset, size, lambda values=values: [values()])  # type: ignore[misc]
            for number, (values, offset, size) in enumerate(shapes)
        ]


@dataclass(frozen=True)
class _DocumentsOfSpan:
    """Documents that follow each other in an index, without the chunks of padding at their ends."""

    first_document: int
    first_chunk: int
    num_documents: int
    num_chunks: int
    sizes: Callable[[], Int64Array]  # chunks of each

    @classmethod
    def of(cls, span: PositionSpan, before: int) -> _DocumentsOfSpan:
        """The runs of a span, after so many documents of one chunk of padding."""
        return cls(
            before + span.first_run, before + span.first, span.record.num_runs, len(span), lambda: span.run_sizes
        )
