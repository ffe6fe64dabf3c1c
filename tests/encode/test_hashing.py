"""The hashing encoder: the same bits everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.encode.hashing import hash_texts
from retrodb.encode.resolve import resolve_encoder
from retrodb.errors import UsageError

MASK = (1 << 64) - 1


def reference(text: str, dimension: int) -> np.ndarray:
    """The specification in plain Python."""
    cells = [0] * dimension
    data = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in text.encode())
    is_word = [byte >= 128 or chr(byte).isalnum() for byte in data]
    words, start = [], None
    for i in range(len(data) + 1):
        inside = i < len(data) and is_word[i]
        if inside and start is None:
            start = i
        elif not inside and start is not None:
            words.append(data[start:i])
            start = None

    def add(piece: bytes, offset: int, weight: int) -> None:
        value = 0xCBF29CE484222325 + offset
        for byte in piece:
            value = ((value ^ byte) * 0x100000001B3) & MASK
        value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & MASK
        value ^= value >> 33
        cells[(value >> 1) % dimension] += weight if value & 1 else -weight

    for word in words:
        add(word, 0, min(len(word), 8))
        for i in range(len(word) - 3):
            add(word[i : i + 4], 1, 1)
    squares = sum(cell * cell for cell in cells)
    if squares == 0:
        cells[0] = squares = 1
    return (np.array(cells) / np.sqrt(np.float64(squares))).astype(np.float16)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6), st.integers(1, 40))
def test_vectors_equal_the_plain_specification(texts, dimension):
    vectors_ND, _ = hash_texts(texts, dimension)
    assert vectors_ND.shape == (len(texts), dimension)
    for text, vector_D in zip(texts, vectors_ND, strict=True):
        assert vector_D.tobytes() == reference(text, dimension).tobytes()


def test_bytes_are_those_of_every_other_machine():
    vectors_ND, _ = hash_texts(["The cat sat on the mat.", "Größe 中文 🙂", ""], 32)
    digest = hashlib.sha256(vectors_ND.tobytes()).hexdigest()
    assert digest.startswith("2b484527f577fff3")


@pytest.mark.parametrize("text", ["", " \t\n", "... !?", "\x00\x01"])
def test_text_without_words_has_the_first_unit_vector(text):
    vectors_ND, words_N = hash_texts([text], 8)
    assert vectors_ND.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
    assert words_N.tolist() == [0]


def test_arrow_slices_are_read_from_their_offset():
    array = pa.array(["one", "two words", "three"], pa.large_string())
    whole, _ = hash_texts(array, 16)
    part, words_N = hash_texts(array.slice(1, 2), 16)
    assert part.tobytes() == whole[1:].tobytes()
    assert words_N.tolist() == [2, 1]
    assert hash_texts(array.cast(pa.string()), 16)[0].tobytes() == whole.tobytes()


def test_shared_words_make_texts_near():
    vectors_ND = hash_texts(["a cat on a mat", "the mat and the cat", "stock exchange rates"], 256)[0].astype(
        np.float32
    )
    assert vectors_ND[0] @ vectors_ND[1] > 0.4 > abs(vectors_ND[0] @ vectors_ND[2])


@pytest.mark.parametrize("name", ["hashing:", "hashing:0", "hashing:x", "hashing:-3", "hashing:100000"])
def test_impossible_dimension_is_refused(name):
    with pytest.raises(UsageError, match="1 to 65,536"):
        resolve_encoder(name)


def test_encoder_treats_queries_like_passages():
    encoder = resolve_encoder("hashing:64")
    texts = ["first text", "second text"]
    queries_QD = encoder.encode_queries(texts)
    assert queries_QD.dtype == np.float32
    assert np.array_equal(queries_QD, encoder.encode_passages(texts).vectors_ND)
    assert [len(b.vectors_ND) for b in encoder.encode_windows([texts, texts[:1], []])] == [2, 1, 0]
    assert encoder.identity.metric == "inner_product"
    assert encoder.num_flops(np.array([1], np.int32)) == 0
    assert encoder.provenance.name == "hashing:64"
