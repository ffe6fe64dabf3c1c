"""The word cache gives what the tokenizer gives."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_corpora import content
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from retrodb.encode.chunk_tokenizer import ChunkTokenizer, TokenizerSpec, tokenize
from retrodb.encode.model_folder import read_tokenizer

# White space of every kind, control characters that BERT deletes, marks, joiners, scripts without spaces, special tokens.
PIECES = [
    *" \t\n\r\u00a0\u1680\u2000\u200a\u202f\u205f\u3000\x00\x0b\x0c\x1c\x1d\x1f\x7f\x85\u2028\u2029\u200b\u200d\ufeff\ufffd"
]
PIECES += [
    *"\u0301\u0345abE.,'-#[]中文ßİΣς한ไ🙂",
    "é",
    "e\u0301",
    "[SEP]",
    "[CLS]",
    "[PAD]",
    "##ing",
    "hello ",
    "x" * 101,
]
TEXTS = st.lists(
    st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=30).map("".join), max_size=20
)


@pytest.fixture(scope="module")
def cached(minilm):
    return ChunkTokenizer(TokenizerSpec(read_tokenizer(minilm), 1 << 20))


def rows(token_ids):
    return [token_ids.ids[a:b].tolist() for a, b in zip(token_ids.offsets[:-1], token_ids.offsets[1:], strict=True)]


def as_tokenized(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
def test_cached_ids_equal_the_tokenizers_on_any_unicode(cached, texts):
    assert cached.is_cached
    assert rows(cached.encode(texts)) == as_tokenized(cached.tokenizer, texts)


def test_random_strings_equal_the_tokenizers(cached):
    rng = random.Random(5)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(40))) for _ in range(5_000)]
    assert rows(cached.encode(texts)) == as_tokenized(cached.tokenizer, texts)


def test_special_tokens_in_the_text_are_text(cached):
    (ids,) = rows(cached.encode(["a [SEP] [PAD]b"]))
    assert ids[0] == 101
    assert ids[-1] == 102
    assert not {0, 100, 101, 102, 103} & set(ids[1:-1])


def test_text_without_word_pieces_is_special_tokens_only(cached):
    token_ids = cached.encode(["", " \n", "\x00\x0b"])
    assert rows(token_ids) == [[101, 102]] * 3
    assert token_ids.num_truncated == 0


def test_long_text_is_cut_before_its_last_special_token_and_counted(minilm):
    spec = TokenizerSpec(read_tokenizer(minilm), 16)
    token_ids = tokenize(spec, ["cat " * 2_000, "cat " * 14, "cat " * 15])
    assert token_ids.lengths_N.tolist() == [16, 16, 16]
    assert token_ids.num_truncated == 2
    assert [ids[-1] for ids in rows(token_ids)] == [102] * 3
    assert token_ids.ids.dtype == np.uint16


def test_cache_is_bounded_and_its_size_changes_nothing(minilm):
    small = ChunkTokenizer(TokenizerSpec(read_tokenizer(minilm), 512, max_cached_runs=10))
    texts = [f"word{i} {'z' * 60}{i} shared" for i in range(40)]
    expected = as_tokenized(small.tokenizer, texts)
    for start in range(0, 40, 4):
        assert rows(small.encode(texts[start : start + 4])) == expected[start : start + 4]
        assert len(small.cache) <= 10 + 5  # what was there, and the runs of one call
        assert not any(len(run) > 48 for run in small.cache)


def byte_level(num_words: int = 0) -> Tokenizer:
    """A byte-level BPE as RoBERTa's, with a vocabulary as large as asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: i for i, token in enumerate(["<s>", "</s>", *alphabet, *(f"word{i}" for i in range(num_words))])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS)
def test_other_tokenizers_are_asked_themselves(texts):
    ours = ChunkTokenizer(TokenizerSpec(byte_level().to_str(), 1 << 20))
    assert not ours.is_cached
    assert rows(ours.encode(texts)) == as_tokenized(ours.tokenizer, texts)


def test_large_vocabularies_have_32_bit_ids():
    ours = ChunkTokenizer(TokenizerSpec(byte_level(70_000).to_str(), 64))
    assert ours.encode(["abc"]).ids.dtype == np.uint32
    assert ours.encode(["abc"]).lengths_N.tolist() == [5]


def test_added_words_that_may_span_white_space_switch_the_cache_off(minilm):
    tokenizer = Tokenizer.from_str(read_tokenizer(minilm))
    tokenizer.add_tokens(["new york"])
    ours = ChunkTokenizer(TokenizerSpec(tokenizer.to_str(), 64))
    assert not ours.is_cached
    assert rows(ours.encode(["in new york city"])) == as_tokenized(ours.tokenizer, ["in new york city"])


def test_digest_ignores_format_padding_and_truncation(make_model):
    folder = make_model("bert")
    before = TokenizerSpec(read_tokenizer(folder), 16).digest
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    assert TokenizerSpec(read_tokenizer(folder), 16).digest == before


@pytest.mark.corpora
def test_real_chunks_equal_the_tokenizers(cached):
    documents = [json.loads(line)["text"] for line in content("wikipedia-en.jsonl.zst").splitlines()[:400]]
    texts = [text[start : start + 300] for text in documents for start in range(0, len(text), 300)]
    expected = as_tokenized(cached.tokenizer, texts)
    assert rows(cached.encode(texts)) == expected
    assert rows(cached.encode(texts)) == expected  # warm
