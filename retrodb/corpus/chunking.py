"""Documents -> chunks of 64 consecutive tokens, whose texts joined are the document, byte for byte.

A chunk's text begins with the first byte of its first token and runs to where the next chunk's begins: bytes that no token
covers (with lossy tokenizers) go to the chunk before, those before the first token to the first chunk. Where that would
cut a character, the character goes to the chunk that holds its first byte. Tokens are exact either way.

A key-value document is the chunks of its key, then those of its value, each tokenized on its own.

M documents, U texts (keys and values), N chunks, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.corpus.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

ROLE_TEXT, ROLE_KEY, ROLE_VALUE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of some documents, in their order, and counts per document."""

    tokens: np.ndarray[Any, Any]  # (T,) ids, `Tokenizer.token_dtype`
    token_offsets: np.ndarray[Any, Any]  # (N + 1,) int64; chunk n has tokens [token_offsets[n], token_offsets[n + 1])
    document: np.ndarray[Any, Any]  # (N,) int32; the row, among these chunks, of the document's first
    position: np.ndarray[Any, Any]  # (N,) int32; from 0 within the document, keys and values counted on
    role: np.ndarray[Any, Any]  # (N,) uint8; 0 text, 1 key, 2 value
    text: pa.LargeStringArray  # (N,) slices of one buffer
    first_row: np.ndarray[Any, Any]  # (M,) int64
    num_chunks: np.ndarray[Any, Any]  # (M,) int32
    num_key_chunks: np.ndarray[Any, Any]  # (M,) int32; 0 for a document that is plain text
    num_tokens: np.ndarray[Any, Any]  # (M,) int64; key and value together
    num_key_tokens: np.ndarray[Any, Any]  # (M,) int64; 0 for a document that is plain text
    num_chars: np.ndarray[Any, Any]  # (M,) int64; key and value together


def chunk_documents(
    texts: pa.LargeStringArray,
    values: pa.LargeStringArray | None,
    tokenizer: Tokenizer,
    chunk_tokens: int = 64,
    num_threads: int = 1,
) -> Chunks:
    """The chunks of M documents.

    Every text has at least one chunk, of no tokens if the tokenizer finds none in it.

    Args:
        texts: (M,) whole texts without nulls; the keys, when there are values.
        values: (M,) the values of a key-value corpus; a null is a document without one.
    """
    texts_U, document_U, role_U = _texts_and_roles(texts, values)
    tokenized = tokenizer.encode_batch(texts_U.to_pylist(), num_threads, starts_every=chunk_tokens)
    tokens_per_text_U = np.diff(tokenized.text_offsets)
    chunks_per_text_U = np.maximum(-(-tokens_per_text_U // chunk_tokens), 1)

    text_of_chunk_N = np.repeat(np.arange(len(texts_U)), chunks_per_text_U)
    first_chunk_U = _offsets(chunks_per_text_U)[:-1]
    row_in_text_N = np.arange(len(text_of_chunk_N)) - first_chunk_U[text_of_chunk_N]
    first_token_N = tokenized.text_offsets[text_of_chunk_N] + row_in_text_N * chunk_tokens

    document_N = document_U[text_of_chunk_N]
    num_chunks = np.bincount(document_N, minlength=len(texts))
    first_row = _offsets(num_chunks)[:-1]
    is_key_U = role_U == ROLE_KEY
    # A text without tokens has a chunk, but no start.
    starts_N = np.zeros(len(text_of_chunk_N), dtype=np.int64)
    starts_N[(tokens_per_text_U > 0)[text_of_chunk_N]] = tokenized.starts
    starts_N[row_in_text_N == 0] = 0
    text, chars_per_text_U = _chunk_texts(texts_U, starts_N, text_of_chunk_N)
    return Chunks(
        tokens=tokenized.tokens,
        token_offsets=np.append(first_token_N, len(tokenized.tokens)),
        document=first_row[document_N].astype(np.int32),
        position=(np.arange(len(document_N)) - first_row[document_N]).astype(np.int32),
        role=role_U[text_of_chunk_N],
        text=text,
        first_row=first_row,
        num_chunks=num_chunks.astype(np.int32),
        num_key_chunks=_sums(document_U, chunks_per_text_U * is_key_U, len(texts)).astype(np.int32),
        num_tokens=_sums(document_U, tokens_per_text_U, len(texts)),
        num_key_tokens=_sums(document_U, tokens_per_text_U * is_key_U, len(texts)),
        num_chars=_sums(document_U, chars_per_text_U, len(texts)),
    )


def _texts_and_roles(
    texts: pa.LargeStringArray, values: pa.LargeStringArray | None
) -> tuple[pa.LargeStringArray, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Texts to cut (U,), the document of each, and its role: a key, then its value unless that is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    num_documents = len(texts)
    if values is None:
        return texts, np.arange(num_documents), np.full(num_documents, ROLE_TEXT, dtype=np.uint8)
    document_U = np.repeat(np.arange(num_documents), 2)
    role_U = np.tile(np.array([ROLE_KEY, ROLE_VALUE], dtype=np.uint8), num_documents)
    is_there_U = np.ones(2 * num_documents, dtype=bool)
    is_there_U[1::2] = pc.is_valid(values).to_numpy(zero_copy_only=False)
    rows_U = (document_U + num_documents * (role_U == ROLE_VALUE))[is_there_U]
    texts_U = pa.concat_arrays([texts, values]).take(pa.array(rows_U))
    return texts_U, document_U[is_there_U], role_U[is_there_U]


def _chunk_texts(
    texts_U: pa.LargeStringArray,
    starts_N: np.ndarray[Any, Any],
    text_of_chunk_N: np.ndarray[Any, Any],
) -> tuple[pa.LargeStringArray, np.ndarray[Any, Any]]:
    """The chunks' texts (N,), sharing the documents' bytes, and the characters of each text (U,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _, offsets_buffer, data_buffer = texts_U.buffers()
    offsets_U = np.frombuffer(offsets_buffer, dtype=np.int64)[texts_U.offset :][: len(texts_U) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.empty(0, dtype=np.uint8)
    begins_N = offsets_U[text_of_chunk_N] + starts_N
    ends_N = offsets_U[text_of_chunk_N + 1]
    for _ in range(3):  # a character has at most three bytes after its first
        inside_N = np.flatnonzero(begins_N < ends_N)
        inside_N = inside_N[(data[begins_N[inside_N]] & 0xC0) == 0x80]
        begins_N[inside_N] += 1
    chunk_offsets = np.append(begins_N, offsets_U[-1:])
    text = pa.LargeStringArray.from_buffers(len(begins_N), pa.py_buffer(chunk_offsets), data_buffer)
    return text, pc.utf8_length(texts_U).to_numpy(zero_copy_only=False)


def _sums(group: np.ndarray[Any, Any], amounts: np.ndarray[Any, Any], num_groups: int) -> np.ndarray[Any, Any]:
    """Sums (num_groups,) int64 of amounts by group."""
    sums = np.zeros(num_groups, dtype=np.int64)
    np.add.at(sums, group, amounts)
    return sums


def _offsets(lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate(([0], np.cumsum(lengths)))
