"""Export for DPR and Fusion-in-Decoder: `train.jsonl` with a line `{question, answers, ctxs}` for every row of the table.

The question is the text of the row. The answer is the value where the row is a key, and the text after the row elsewhere; there
is no answer where nothing follows. A context is a neighbour with its continuation: `{id, title, text, score}`. The readers need
the same number of contexts for every question, so missing neighbours are contexts without text, and come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from retrodb.export.export_source import ExportSource, arrays_digest
from retrodb.export.folder import ExportFile
from retrodb.export.positions import BLOCK_CHUNKS
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.chunk_set import ChunkSet

NO_SCORE = -1e9  # of a missing neighbour, because JSON has no infinity
_BLOCK_ROWS = BLOCK_CHUNKS // 8
_BYTES_PER_TOKEN = 4.5


def dpr_files(source: ExportSource) -> list[ExportFile]:
    """The file of the export."""
    rows = source.table.rows()
    blocks = [rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS)]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for block in blocks:
                file.writelines(orjson.dumps(record) + b"\n" for record in _records(source, block))

    def inputs_digest() -> str:
        return arrays_digest(array for block in blocks for array in _inputs(source, block))

    size = int(len(rows) * (2 * source.k + 2) * source.chunk_tokens * _BYTES_PER_TOKEN)
    return [ExportFile("train.jsonl", size, inputs_digest, write)]


def _inputs(source: ExportSource, rows: Int64Array) -> Iterator[AnyArray]:
    """Everything that the lines of these rows depend on."""
    ids, distances = source.table.read(rows)
    yield from (rows, source.queries.continuation(rows), ids, source.database.continuation(ids.ravel()), distances)


def _records(source: ExportSource, rows: Int64Array) -> Iterator[dict[str, object]]:
    ids, distances = source.table.read(rows)
    flat = ids.ravel()
    texts = source.database.texts(flat)
    following = source.database.texts(source.database.continuation(flat))
    titles = chunk_titles(source.database, flat)
    contexts = [
        {"id": str(i), "title": title, "text": text + more, "score": NO_SCORE if i < 0 else -float(distance)}
        for i, title, text, more, distance in zip(
            flat.tolist(), titles, texts, following, distances.ravel().tolist(), strict=True
        )
    ]
    questions, answers = source.queries.texts(rows), _answers(source, rows)
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        of_row = contexts[number * source.k : (number + 1) * source.k]
        yield {"question": question, "answers": [answer] if answer else [], "ctxs": of_row}


def _answers(source: ExportSource, rows: Int64Array) -> list[str]:
    """The whole value of a key's document; for other rows the text of the next chunk."""
    following = source.queries.texts(source.queries.continuation(rows))
    documents = source.queries.documents(rows)
    for number, document in enumerate(documents):
        if document is not None and document["num_key_chunks"]:
            first = document["first_chunk"]
            value = np.arange(first + document["num_key_chunks"], first + document["num_chunks"])
            following[number] = "".join(source.queries.texts(value))
    return following


def chunk_titles(chunks: ChunkSet, ids: Int64Array) -> list[str]:
    """The title that the metadata of each chunk's document names, or the document's id; "" for missing and deleted chunks."""
    documents = chunks.document_ids(np.where(chunks.is_live(ids), ids, -1))
    unique, inverse = np.unique(documents, return_inverse=True)
    titles = []
    for document in chunks.documents(unique):
        metadata = orjson.loads(document["metadata"]) if document else {}
        titles.append(str(metadata.get("title") or document["doc_id"]) if document else "")
    return [titles[number] for number in inverse.tolist()]
