"""Export for TobiasNorlund/retro: `.npy` files that its `dataset_retro.py` memory-maps, and the two JSON files that name them.

    spec.json        shards of input with their neighbours (`--training-dataset-spec`), and index.json
    index.json       shards that neighbours are looked up in
    <part>/chunks.npy (N, m)  seq2chunk.npy (S,)  chunk2seq.npy (N,)      part: database, or rows of a foreign query set
    neighbours.npy (Q, K)     places in the database, -1 for none

The reader ends a continuation where the sequence ends: a sequence is a run of chunks. `pad_token_idx` of its dataset has to be
the `pad_token` of the card.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retrodb.corpus.special_tokens import special_ids
from retrodb.export.arrays import array_piece
from retrodb.export.layout import ExportPositions
from retrodb.export.padding import padded_tokens
from retrodb.export.pieces import Piece, json_file
from retrodb.export.source import ExportSource
from retrodb.format.arrays import growing_array
from retrodb.view.chunk_set import ChunkSet


def pieces_of_norlund(source: ExportSource) -> list[Piece]:
    """The files of the export."""
    pad = special_ids(source.view.storage.read("tokenizer.json"), source.settings.vocab_size).pad
    dtype = np.dtype(np.uint16 if max(pad, source.settings.vocab_size - 1) < 1 << 16 else np.uint32)
    tokens = partial(_part, m=source.chunk_tokens, pad=pad, dtype=dtype)
    pieces = tokens("database", source.database, source.chunks, source.state_of_chunks)
    if not source.is_own:
        pieces += tokens("rows", source.queries, source.rows, source.state_of_rows)
    own = "database" if source.is_own else "rows"
    shard = {**_names(own), "neighbours": "neighbours.npy"}
    spec = {"shards": [shard], "neighbours": {"faiss_index": None, "index_spec": "index.json"}, "pad_token": pad}
    neighbours = array_piece(
        "neighbours.npy", source.rows, np.dtype(np.int64), (source.k,), source.state_of_neighbours, source.neighbours
    )
    return [*pieces, neighbours, json_file("index.json", [_names("database")]), json_file("spec.json", spec)]


def _part(
    folder: str,
    chunks: ChunkSet,
    layout: ExportPositions,
    state: Callable[[], str],
    *,
    m: int,
    pad: int,
    dtype: np.dtype[Any],
) -> list[Piece]:
    """The files of one chunk set; only the tokens ever change."""
    names = _names(folder)
    gather = partial(padded_tokens, chunks, pad=pad, dtype=dtype)

    def write_firsts(path: Path) -> None:
        with growing_array(path, np.dtype(np.int64)) as append:
            for span in layout.spans:
                append(span.first + span.run_starts)

    def write_sequences(path: Path) -> None:
        first = 0
        with growing_array(path, np.dtype(np.int32)) as append:
            for span in layout.spans:
                append(np.repeat(first + np.arange(len(span.run_sizes)), span.run_sizes))
                first += len(span.run_sizes)

    return [
        array_piece(names["chunks"], layout, dtype, (m,), state, gather),
        Piece(names["seq2chunk"], 128 + 8 * layout.num_runs, lambda: layout.digest, write_firsts),
        Piece(names["chunk2seq"], 128 + 4 * len(layout), lambda: layout.digest, write_sequences),
    ]


def _names(folder: str) -> dict[str, str]:
    return {name: f"{folder}/{name}.npy" for name in ("chunks", "seq2chunk", "chunk2seq")}
