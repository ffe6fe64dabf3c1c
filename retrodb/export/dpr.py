"""Export for DPR and Fusion-in-Decoder: `train.jsonl`, a line `{question, answers, ctxs}` for every row of the table.

A row's text is the question. The answer is the value where the row is a key, else the text that follows it, and there is none
where nothing follows. A context is a neighbour with its continuation: `{id, title, text, score}`. The readers want equally
many for every question: missing neighbours are contexts of empty text, and come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from retrodb.export.layout import BLOCK_CHUNKS
from retrodb.export.pieces import Piece
from retrodb.export.source import ExportSource, state_of
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.chunk_set import ChunkSet

NO_SCORE = -1e9  # of a missing neighbour: JSON has no infinity
_BLOCK_ROWS = BLOCK_CHUNKS // 8
_BYTES_PER_TOKEN = 4.5


def pieces_of_dpr(source: ExportSource) -> list[Piece]:
    """The file of the export."""
    rows = source.table.rows()
    blocks = [rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS)]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for block in blocks:
                file.writelines(orjson.dumps(record) + b"\n" for record in _records(source, block))

    def state() -> str:
        return state_of(array for block in blocks for array in _inputs(source, block))

    size = int(len(rows) * (2 * source.k + 2) * source.chunk_tokens * _BYTES_PER_TOKEN)
    return [Piece("train.jsonl", size, state, write)]


def _inputs(source: ExportSource, rows: Int64Array) -> Iterator[AnyArray]:
    """What the lines of some rows follow from."""
    ids, distances = source.table.read(rows)
    yield from (rows, source.queries.continuation(rows), ids, source.database.continuation(ids.ravel()), distances)


def _records(source: ExportSource, rows: Int64Array) -> Iterator[dict[str, Any]]:
    ids, distances = source.table.read(rows)
    flat = ids.ravel()
    near = source.database.texts(flat)
    following = source.database.texts(source.database.continuation(flat))
    titles = titles_of(source.database, flat)
    contexts = [
        {"id": str(i), "title": title, "text": text + more, "score": NO_SCORE if i < 0 else -float(distance)}
        for i, title, text, more, distance in zip(
            flat.tolist(), titles, near, following, distances.ravel().tolist(), strict=True
        )
    ]
    questions, answers = source.queries.texts(rows), _answers(source, rows)
    for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        own = contexts[place * source.k : (place + 1) * source.k]
        yield {"question": question, "answers": [answer] if answer else [], "ctxs": own}


def _answers(source: ExportSource, rows: Int64Array) -> list[str]:
    """The whole value of a key's document; for other rows the text of the next chunk."""
    following = source.queries.texts(source.queries.continuation(rows))
    documents = source.queries.documents(rows)
    for place, document in enumerate(documents):
        if document is not None and document["num_key_chunks"]:
            first = document["first_chunk"]
            value = np.arange(first + document["num_key_chunks"], first + document["num_chunks"])
            following[place] = "".join(source.queries.texts(value))
    return following


def titles_of(chunks: ChunkSet, ids: Int64Array) -> list[str]:
    """The title that the metadata of each chunk's document names, or the document's id; "" for missing and deleted chunks."""
    documents = chunks.document_ids(np.where(chunks.is_live(ids), ids, -1))
    own, which = np.unique(documents, return_inverse=True)
    titles = []
    for document in chunks.documents(own):
        metadata = orjson.loads(document["metadata"]) if document else {}
        titles.append(str(metadata.get("title") or document["doc_id"]) if document else "")
    return [titles[place] for place in which.tolist()]
