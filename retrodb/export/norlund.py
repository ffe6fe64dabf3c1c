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
from pathlib import Path

import numpy as np

from retrodb.corpus.special_tokens import special_ids
from retrodb.export.arrays import array_file
from retrodb.export.export_source import ExportSource
from retrodb.export.folder import ExportFile, json_file
from retrodb.export.padding import IntegerDtype, padded_chunk_tokens
from retrodb.export.positions import ExportPositions
from retrodb.format.arrays import growing_array
from retrodb.view.chunk_set import ChunkSet


def norlund_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export."""
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
    inputs_digest: Callable[[], str],
    *,
    m: int,
    pad: int,
    dtype: IntegerDtype,
) -> list[ExportFile]:
    """The files of one chunk set; only the tokens ever change."""
    names = _names(folder)
    gather = partial(padded_chunk_tokens, chunks, pad=pad, dtype=dtype)

    def write_firsts(path: Path) -> None:
        with growing_array(path, np.dtype(np.int64)) as append:
            for span in positions.spans:
                append(span.first + span.run_starts)

    def write_sequences(path: Path) -> None:
        first = 0
        with growing_array(path, np.dtype(np.int32)) as append:
            for span in positions.spans:
                append(np.repeat(first + np.arange(len(span.run_sizes)), span.run_sizes))
                first += len(span.run_sizes)

    return [
        array_file(names["chunks"], positions, dtype, (m,), inputs_digest, gather),
        ExportFile(names["seq2chunk"], 128 + 8 * positions.num_runs, lambda: positions.digest, write_firsts),
        ExportFile(names["chunk2seq"], 128 + 4 * len(positions), lambda: positions.digest, write_sequences),
    ]


def _names(folder: str) -> dict[str, str]:
    return {name: f"{folder}/{name}.npy" for name in ("chunks", "seq2chunk", "chunk2seq")}
