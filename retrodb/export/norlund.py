"""Export for TobiasNorlund/retro: `.npy` files that its `dataset_retro.py` memory-maps, and the two JSON files that name them.

    spec.json        shards of input with their neighbours (`--training-dataset-spec`), and index.json
    index.json       shards that neighbours are looked up in
    <part>/chunks.npy (N, m)  seq2chunk.npy (S,)  chunk2seq.npy (N,)      part: database, or rows of another query set
    neighbours.npy (Q, K)     positions in the database, -1 for none

The reader ends a continuation where the sequence ends, so a sequence is a run of chunks. `pad_token_idx` of its dataset has to be
the `pad_token` of `spec.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from retrodb.corpus.special_tokens import special_ids
from retrodb.export.arrays import SpanDigest, array_file
from retrodb.export.export_file import ExportFile, FileRange, RangedPiece, json_file, ranged_file
from retrodb.export.export_source import ExportSource
from retrodb.export.limits import INT32_MAX, check_count
from retrodb.export.padding import IntegerDtype, padded_chunk_tokens
from retrodb.export.positions import ExportPositions, PositionSpan
from retrodb.format.arrays import AnyArray, array_header
from retrodb.view.chunk_set import ChunkSet

_FIRST, _SEQUENCE = np.dtype(np.int64), np.dtype(np.int32)


def norlund_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export.

    Raises:
        UsageError: when there are more sequences than a signed 32-bit number can count.
    """
    pad = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size).pad
    is_short = max(pad, source.settings.vocab_size - 1) < 1 << 16
    dtype: IntegerDtype = np.dtype(np.uint16) if is_short else np.dtype(np.uint32)
    tokens = partial(_part, m=source.chunk_tokens, pad=pad, dtype=dtype)
    files = tokens("database", source.database, source.chunks, source.chunks_digest)
    if not source.has_own_rows:
        files += tokens("rows", source.queries, source.rows, source.rows_digest)
    row_folder = "database" if source.has_own_rows else "rows"
    shard = {**_names(row_folder), "neighbours": "neighbours.npy"}
    spec = {"shards": [shard], "neighbours": {"faiss_index": None, "index_spec": "index.json"}, "pad_token": pad}
    neighbours = array_file(
        "neighbours.npy", source.rows, np.dtype(np.int64), (source.k,), source.neighbours_digest, source.neighbours
    )
    return [*files, neighbours, json_file("index.json", [_names("database")]), json_file("spec.json", spec)]


def _part(
    folder: str,
    chunks: ChunkSet,
    positions: ExportPositions,
    inputs_digest: SpanDigest,
    *,
    m: int,
    pad: int,
    dtype: IntegerDtype,
) -> list[ExportFile]:
    """The files of one chunk set; only the tokens ever change."""
    check_count(
        "sequences", positions.num_runs, INT32_MAX, "norlund", "Export with --to arrays, which has 64-bit numbers."
    )
    names = _names(folder)
    gather = partial(padded_chunk_tokens, chunks, pad=pad, dtype=dtype)
    first_head = array_header(_FIRST, (positions.num_runs,))
    sequence_head = array_header(_SEQUENCE, (len(positions),))

    def firsts(span: PositionSpan) -> list[AnyArray]:
        return [span.first + span.run_starts]

    def sequences(span: PositionSpan) -> list[AnyArray]:
        numbers = span.first_run + np.arange(span.record.num_runs)
        return [np.repeat(numbers, span.run_sizes).astype(_SEQUENCE)]

    def piece(
        span: PositionSpan, offset: int, size: int, blocks: Callable[[PositionSpan], list[AnyArray]]
    ) -> RangedPiece:
        return RangedPiece(lambda: span.record.digest, [FileRange(offset, size, partial(blocks, span))])

    of_firsts = [
        piece(span, len(first_head) + 8 * span.first_run, 8 * span.record.num_runs, firsts) for span in positions.spans
    ]
    of_sequences = [
        piece(span, len(sequence_head) + 4 * span.first, 4 * len(span), sequences) for span in positions.spans
    ]
    return [
        array_file(names["chunks"], positions, dtype, (m,), inputs_digest, gather),
        ranged_file(names["seq2chunk"], of_firsts, head=first_head),
        ranged_file(names["chunk2seq"], of_sequences, head=sequence_head),
    ]


def _names(folder: str) -> dict[str, str]:
    return {name: f"{folder}/{name}.npy" for name in ("chunks", "seq2chunk", "chunk2seq")}
