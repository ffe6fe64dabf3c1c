"""Documents -> chunks of 64 consecutive tokens. The joined texts of the chunks are the document, byte for byte.

The text of a chunk starts at the first byte of its first token and ends where the next chunk starts. Lossy tokenizers leave
bytes that no token covers: they belong to the chunk before them, or to the first chunk. A character that would be cut
belongs to the chunk of its first byte. The tokens are exact in every case.

A key-value document is the chunks of its key, then those of its value. Both are tokenized separately.

M documents, U texts (keys and values), N chunks, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.format.arrays import AnyArray, ByteArray, Int32Array, Int64Array, TokenArray
from retrodb.format.schemas import ROLE_KEY, ROLE_TEXT, ROLE_VALUE

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of M documents, in order, and counts per document."""

    tokens: TokenArray  # (T,) ids, `Tokenizer.token_dtype`
    token_offsets: Int64Array  # (N + 1,) int64; chunk n has tokens [token_offsets[n], token_offsets[n + 1])
    document: Int32Array  # (N,) row of the document's first chunk, among these chunks
    position: Int32Array  # (N,) from 0 within the document; those of a value follow those of its key
    role: ByteArray  # (N,) ROLE_TEXT, ROLE_KEY or ROLE_VALUE
    text: pa.LargeStringArray  # (N,) slices of one buffer
    first_row: Int64Array  # (M,) row of the first chunk
    num_chunks: Int32Array  # (M,)
    num_key_chunks: Int32Array  # (M,) 0 for a document that is plain text
    num_tokens: Int64Array  # (M,) key and value together
    num_key_tokens: Int64Array  # (M,) 0 for a document that is plain text
    num_chars: Int64Array  # (M,) key and value together


def chunk_documents(
    texts: pa.LargeStringArray,
    values: pa.LargeStringArray | None,
    tokenizer: Tokenizer,
    chunk_tokens: int = 64,
    num_threads: int = 1,
) -> Chunks:
    """The chunks of M documents.

    Every text has at least one chunk, even if it has no tokens.

    Args:
        texts: (M,) whole texts without nulls; the keys, if there are values.
        values: (M,) the values of a key-value corpus; null for a document without a value.
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
    # A text without tokens has one chunk, but no token that starts it.
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
) -> tuple[pa.LargeStringArray, Int64Array, ByteArray]:
    """The texts to cut (U,), their documents, and their roles: each key, then its value unless that is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    num_documents = len(texts)
    if values is None:
        return texts, np.arange(num_documents), np.full(num_documents, ROLE_TEXT, dtype=np.uint8)
    document_U = np.repeat(np.arange(num_documents), 2)
    role_U = np.tile(np.array([ROLE_KEY, ROLE_VALUE], dtype=np.uint8), num_documents)
    is_present_U = np.ones(2 * num_documents, dtype=bool)
    is_present_U[1::2] = pc.is_valid(values).to_numpy(zero_copy_only=False)
    rows_U = (document_U + num_documents * (role_U == ROLE_VALUE))[is_present_U]
    texts_U = pa.concat_arrays([texts, values]).take(pa.array(rows_U))
    return texts_U, document_U[is_present_U], role_U[is_present_U]


def _chunk_texts(
    texts_U: pa.LargeStringArray, starts_N: Int64Array, text_of_chunk_N: Int64Array
) -> tuple[pa.LargeStringArray, Int64Array]:
    """The texts of the chunks (N,), which share the bytes of the documents, and the characters of each text (U,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _, offsets_buffer, data_buffer = texts_U.buffers()
    offsets_U = np.frombuffer(offsets_buffer, dtype=np.int64)[texts_U.offset :][: len(texts_U) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.empty(0, dtype=np.uint8)
    begins_N = offsets_U[text_of_chunk_N] + starts_N
    ends_N = offsets_U[text_of_chunk_N + 1]
    for _ in range(3):  # a character has at most three bytes after its first byte
        inside_N = np.flatnonzero(begins_N < ends_N)
        inside_N = inside_N[(data[begins_N[inside_N]] & 0xC0) == 0x80]
        begins_N[inside_N] += 1
    chunk_offsets = np.append(begins_N, offsets_U[-1:])
    text = pa.LargeStringArray.from_buffers(len(begins_N), pa.py_buffer(chunk_offsets), data_buffer)
    return text, pc.utf8_length(texts_U).to_numpy(zero_copy_only=False)


def _sums(groups: Int64Array, amounts: AnyArray, num_groups: int) -> Int64Array:
    """The sum of the amounts of each group (num_groups,)."""
    sums = np.zeros(num_groups, dtype=np.int64)
    np.add.at(sums, groups, amounts)
    return sums


def _offsets(lengths: AnyArray) -> Int64Array:
    return np.concatenate(([0], np.cumsum(lengths)))
