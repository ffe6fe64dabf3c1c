from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrodb.corpus.chunking import ROLE_KEY, ROLE_TEXT, ROLE_VALUE, Chunks, chunk_documents
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.tokenizer_files import resolve_tokenizer

KINDS = ("byte_bpe", "wordpiece", "unigram", "byte_fallback_bpe")
REAL_KINDS = tuple(pytest.param(name, marks=pytest.mark.corpora) for name in ("gpt2", "bert-base-uncased"))
VARIED = st.one_of(
    st.text(min_size=1, max_size=300),
    st.text(alphabet="的一是不了人我在有他这中大来上国", min_size=1, max_size=300),
    st.text(alphabet="가나다라마바사아자차카타파하 ", min_size=1, max_size=300),
    st.text(alphabet="👩\u200d👧🇩🇪👍🏽 e\u0301ß", min_size=1, max_size=100),
    st.lists(st.sampled_from(["the", "chunk", "token", "  ", "\n", "[SEP]", "数"]), min_size=1, max_size=300).map(
        " ".join
    ),
)


@pytest.fixture(scope="session", params=[*KINDS, *REAL_KINDS])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param in KINDS:
        tokenizer: Tokenizer = request.getfixturevalue(request.param)
        return tokenizer
    return resolve_tokenizer(request.getfixturevalue("real_tokenizers") / request.param)


def cut(texts: list[str], tokenizer: Tokenizer, values: list[str | None] | None = None, size: int = 64) -> Chunks:
    as_array = pa.array(texts, pa.large_string())
    return chunk_documents(as_array, None if values is None else pa.array(values, pa.large_string()), tokenizer, size)


def text_of_document(chunks: Chunks, m: int) -> str:
    first = chunks.first_row[m]
    return "".join(chunks.text[first : first + chunks.num_chunks[m]].to_pylist())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(VARIED, min_size=1, max_size=4), size=st.sampled_from([1, 3, 64]))
def test_chunk_texts_joined_are_the_document(tokenizer: Tokenizer, texts: list[str], size: int) -> None:
    chunks = cut(texts, tokenizer, size=size)
    chunks.text.validate(full=True)
    for m, text in enumerate(texts):
        alone = tokenizer.encode(text)
        assert text_of_document(chunks, m) == text
        rows = range(chunks.first_row[m], chunks.first_row[m] + chunks.num_chunks[m])
        tokens = [chunks.tokens[chunks.token_offsets[n] : chunks.token_offsets[n + 1]] for n in rows]
        np.testing.assert_array_equal(np.concatenate(tokens), alone)
        assert [len(part) for part in tokens[:-1]] == [size] * (len(tokens) - 1)
        assert chunks.num_chunks[m] == max(1, -(-len(alone) // size))
        assert chunks.num_tokens[m] == len(alone)
        assert chunks.num_chars[m] == len(text)
        assert chunks.document[rows].tolist() == [chunks.first_row[m]] * len(tokens)
        assert chunks.position[rows].tolist() == list(range(len(tokens)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=VARIED, size=st.sampled_from([1, 2, 5]))
def test_character_belongs_to_the_chunk_of_its_first_byte(byte_bpe: Tokenizer, text: str, size: int) -> None:
    chunks = cut([text], byte_bpe, size=size)
    expected = [""] * len(chunks.text)
    chunk_of_byte = [
        n
        for n in range(len(chunks.text))
        for _ in byte_bpe.decode_bytes(chunks.tokens[chunks.token_offsets[n] : chunks.token_offsets[n + 1]])
    ]
    at = 0
    for character in text:
        expected[chunk_of_byte[at]] += character
        at += len(character.encode())
    assert chunks.text.to_pylist() == expected
    assert byte_bpe.decode_bytes(chunks.tokens) == text.encode()


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 127, 128, 129])
def test_no_chunk_is_empty_or_longer_than_64(byte_bpe: Tokenizer, num_tokens: int) -> None:
    token = int(byte_bpe.encode("x")[0])
    text = "x\n" * num_tokens
    tokens = byte_bpe.encode(text)
    text = byte_bpe.decode(tokens[:num_tokens])
    assert token < byte_bpe.vocab_size
    chunks = cut([text], byte_bpe)
    sizes = np.diff(chunks.token_offsets)
    assert sizes.sum() == len(byte_bpe.encode(text))
    assert sizes.min() >= 1
    assert sizes.max() <= 64


def test_text_without_tokens_is_one_chunk_that_holds_it(wordpiece: Tokenizer) -> None:
    chunks = cut(["the chunk", "\u0001\u0002", "the"], wordpiece)
    assert chunks.text.to_pylist() == ["the chunk", "\u0001\u0002", "the"]
    assert np.diff(chunks.token_offsets).tolist() == [2, 0, 1]


def test_gaps_go_to_the_chunk_before_and_a_leading_one_to_the_first(wordpiece: Tokenizer) -> None:
    chunks = cut(["  the   chunk  "], wordpiece, size=1)
    assert chunks.text.to_pylist() == ["  the   ", "chunk  "]


def test_special_token_written_in_the_text_is_ordinary_text(tokenizer: Tokenizer) -> None:
    for name in ("<|endoftext|>", "[SEP]", "[CLS]", "</s>", "<s>"):
        number = tokenizer.id_of(name)
        assert number is None or number not in tokenizer.encode(f"a {name} b{name}").tolist()


def test_value_chunks_follow_the_keys_whatever_their_length(byte_bpe: Tokenizer) -> None:
    keys, values = ["What? " * 30, "Why?"], ["Because. " * 60, "So."]
    chunks = cut(keys, byte_bpe, list(values))
    for m in range(2):
        rows = slice(chunks.first_row[m], chunks.first_row[m] + chunks.num_chunks[m])
        roles, parts = chunks.role[rows], chunks.text[rows].to_pylist()
        num_keys = chunks.num_key_chunks[m]
        assert roles.tolist() == [ROLE_KEY] * num_keys + [ROLE_VALUE] * (len(roles) - num_keys)
        assert "".join(parts[:num_keys]) == keys[m]
        assert "".join(parts[num_keys:]) == values[m]
        assert chunks.num_key_tokens[m] == len(byte_bpe.encode(keys[m]))
        assert chunks.num_tokens[m] == len(byte_bpe.encode(keys[m])) + len(byte_bpe.encode(values[m]))
        assert chunks.position[rows].tolist() == list(range(len(parts)))


def test_document_without_a_value_is_its_key_alone(byte_bpe: Tokenizer) -> None:
    chunks = cut(["a", "b"], byte_bpe, ["x", None])
    assert chunks.text.to_pylist() == ["a", "x", "b"]
    assert chunks.role.tolist() == [ROLE_KEY, ROLE_VALUE, ROLE_KEY]


def test_plain_documents_have_no_key(byte_bpe: Tokenizer) -> None:
    chunks = cut(["a b c"], byte_bpe)
    assert chunks.role.tolist() == [ROLE_TEXT]
    assert (chunks.num_key_chunks[0], chunks.num_key_tokens[0]) == (0, 0)


def test_slice_of_a_larger_array_is_cut_like_the_slice_alone(byte_bpe: Tokenizer) -> None:
    texts = pa.array(["one", "two words", "数据", "four"], pa.large_string())
    sliced = chunk_documents(texts[1:3], None, byte_bpe, 2)
    alone = cut(["two words", "数据"], byte_bpe, size=2)
    assert sliced.text.to_pylist() == alone.text.to_pylist()
    np.testing.assert_array_equal(sliced.tokens, alone.tokens)


def test_no_documents_are_no_chunks(byte_bpe: Tokenizer) -> None:
    chunks = cut([], byte_bpe)
    assert (len(chunks.text), chunks.token_offsets.tolist()) == (0, [0])


def test_chunks_are_the_same_whatever_the_threads(tokenizer: Tokenizer) -> None:
    texts = [f"the chunk {n} of 数据 " * (n % 7 + 1) for n in range(300)]
    one = chunk_documents(pa.array(texts, pa.large_string()), None, tokenizer, 64, 1)
    many = chunk_documents(pa.array(texts, pa.large_string()), None, tokenizer, 64, 3)
    np.testing.assert_array_equal(one.tokens, many.tokens)
    assert one.text.equals(many.text)


def test_dummy_prefix_belongs_to_the_text_and_not_to_its_chunks(
    unigram: Tokenizer, train_sentencepiece: Callable[..., Path]
) -> None:
    text = "the chunk of documents " * 40
    chunks = cut([text.strip()], unigram, size=8)
    np.testing.assert_array_equal(chunks.tokens, unigram.encode(text.strip()))
    assert chunks.text[0].as_py().startswith("the")
    assert unigram.decode(unigram.encode("the chunk")) == "the chunk"
    without = resolve_tokenizer(train_sentencepiece(vocab_size=300, model_type="unigram", add_dummy_prefix=False))
    assert without.encode("the").tolist() != unigram.encode("the").tolist()
