"""Export for DPR and Fusion-in-Decoder: `train.json`, one JSON list of `{question, answers, ctxs}` for the rows of the table.

The question is the text of the row. The answer is the value where the row is a key, and the text after the row elsewhere. Rows
that nothing follows have no target: they are left out, because Fusion-in-Decoder draws one of the answers.

A context is a neighbour with its continuation, after a blank where a value follows a key:
`{id, title, text, score}`, and `similarity` or `squared_distance`, after the
metric of the space. These readers take the greater score as the nearer, so a squared distance becomes a negative score. With
`ctxs`, the form of Fusion-in-Decoder, every question has the same number of contexts: a missing neighbour is a context without
text, and comes last. With `positive_ctxs`, the form that DPR trains its retriever on, a question has only the neighbours that
exist, and no negative contexts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import orjson

from retrodb.export.export_file import Delimiters, ExportFile, TextPiece, text_file
from retrodb.export.export_source import ExportSource, arrays_digest
from retrodb.export.positions import BLOCK_CHUNKS
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.format.records import ChunkRange
from retrodb.view.chunk_set import ChunkSet

NO_SCORE = -1e9  # of a missing neighbour, because JSON has no infinity
_BLOCK_ROWS = BLOCK_CHUNKS // 8
_BYTES_PER_TOKEN = 4.5
_LIST = Delimiters(start=b"[\n", between=b",\n", end=b"\n]\n", empty=b"[]\n")


def dpr_files(source: ExportSource) -> list[ExportFile]:
    """The file of the export."""
    row_bytes = (2 * source.k + 2) * source.chunk_tokens * _BYTES_PER_TOKEN

    def inputs_digest(span: ChunkRange) -> str:
        return arrays_digest(array for block in _blocks(source, span) for array in _inputs(source, block))

    def records(span: ChunkRange) -> Iterator[bytes]:
        blocks = (_with_target(source, rows) for rows in _blocks(source, span))
        return (orjson.dumps(record) for block in blocks for record in _records(source, block))

    pieces = [
        TextPiece(int(span.num_chunks * row_bytes), partial(inputs_digest, span), partial(records, span))
        for span in source.table.spans()
    ]
    return [text_file("train.json", pieces, _LIST, source.scratch)]


def _blocks(source: ExportSource, span: ChunkRange) -> Iterator[Int64Array]:
    """The live rows of a range, a few at a time: their texts are in memory together."""
    rows = source.table.rows_in(*span)
    return (rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS))


def _with_target(source: ExportSource, rows: Int64Array) -> Int64Array:
    """Those rows that something follows: the value of a key, or the next chunk."""
    has_target: BoolArray = np.array([bool(text) for text in _answers(source, rows)], dtype=bool)
    with_target: Int64Array = rows[has_target]
    return with_target


def count_without_target(source: ExportSource, rows: Int64Array) -> int:
    """How many live rows of the table are left out."""
    blocks = (rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS))
    return sum(len(block) - len(_with_target(source, block)) for block in blocks)


def _inputs(source: ExportSource, rows: Int64Array) -> Iterator[AnyArray]:
    """Everything that the lines of these rows depend on."""
    ids, distances = source.table.read(rows)
    yield from (rows, source.queries.continuation(rows), ids, source.database.continuation(ids.ravel()), distances)
    yield from (source.queries.is_live(value) for value in _values_of_keys(source, rows).values())


def _values_of_keys(source: ExportSource, rows: Int64Array) -> dict[int, Int64Array]:
    """The chunks of the value of each row that is part of a key, by the index of the row."""
    return {
        number: document["first_chunk"] + np.arange(document["num_key_chunks"], document["num_chunks"])
        for number, document in enumerate(source.queries.documents(rows))
        if document is not None and document["num_key_chunks"]
    }


def _records(source: ExportSource, rows: Int64Array) -> Iterator[dict[str, object]]:
    ids, distances = source.table.read(rows)
    flat = ids.ravel()
    texts = source.database.texts(flat)
    following = source.database.texts(source.database.continuation(flat))
    titles = chunk_titles(source.database, flat)
    scores = source.table.read_scores(rows)[1].ravel().tolist()
    contexts: list[dict[str, object]] = [
        {
            "id": str(i),
            "title": title,
            "text": f"{text} {more}" if is_key and more else text + more,
            "score": NO_SCORE if i < 0 else -distance,
            source.table.measure: None if i < 0 else value,
        }
        for i, title, text, more, is_key, distance, value in zip(
            flat.tolist(),
            titles,
            texts,
            following,
            _are_last_of_key(source.database, flat),
            distances.ravel().tolist(),
            scores,
            strict=True,
        )
    ]
    questions, answers = source.queries.texts(rows), _answers(source, rows)
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        of_row = contexts[number * source.k : (number + 1) * source.k]
        yield {"question": question, "answers": [answer], **_context_fields(source, of_row)}


def _context_fields(source: ExportSource, contexts: list[dict[str, object]]) -> dict[str, object]:
    if source.params.contexts != "positive_ctxs":
        return {"ctxs": contexts}
    positive = [context for context in contexts if context["text"]]
    return {"positive_ctxs": positive, "negative_ctxs": [], "hard_negative_ctxs": []}


def _are_last_of_key(chunks: ChunkSet, ids: Int64Array) -> list[bool]:
    """Whether the text that follows each chunk is the value of its key: two texts, with a blank between them."""
    documents = chunks.documents(ids)
    return [
        document is not None and i == document["first_chunk"] + document["num_key_chunks"] - 1
        for i, document in zip(ids.tolist(), documents, strict=True)
    ]


def _answers(source: ExportSource, rows: Int64Array) -> list[str]:
    """The whole value of a key's document; for other rows the text of the next chunk."""
    following = source.queries.texts(source.queries.continuation(rows))
    for number, value in _values_of_keys(source, rows).items():
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
