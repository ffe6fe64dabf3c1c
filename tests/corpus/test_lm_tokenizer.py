from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrodb.corpus.lm_tokenizer import SAMPLE, Tokenizer
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.errors import InputError, UsageError

from .conftest import SENTENCES


def spec_of(tokenizer: Tokenizer) -> dict[str, object]:
    spec: dict[str, object] = json.loads(tokenizer.to_bytes())
    return spec


def reference_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What `tokenizers` itself makes of the text."""
    ids: list[int] = tokenizer._model.encode([text], 1, 1)[0][0]
    return ids


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200))
def test_tiktoken_gives_the_ids_of_the_tokenizer_file(byte_bpe: Tokenizer, text: str) -> None:
    assert byte_bpe._byte_bpe is not None
    assert byte_bpe.encode(text).tolist() == reference_ids(byte_bpe, text)


def test_words_are_cut_alike_at_every_character_of_unicode(byte_bpe: Tokenizer) -> None:
    characters = [chr(n) for n in range(sys.maxunicode + 1) if not 0xD800 <= n <= 0xDFFF]
    planes = [characters[at : at + 4096] for at in range(0, len(characters), 4096)]
    planes = [plane for plane in planes if ord(plane[0]) < 0x32000 or ord(plane[0]) >= 0x10F000]
    texts = ["a1 ".join(plane) for plane in planes]
    ours = byte_bpe.encode_batch(texts)
    theirs = byte_bpe._encode_characters(texts, 1, 1)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.starts[: len(theirs.starts)] >= 0, True)


@pytest.mark.corpora
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200))
def test_gpt2_through_tiktoken_equals_its_files(real_tokenizers: Path, text: str) -> None:
    gpt2 = _gpt2(real_tokenizers)
    assert gpt2._byte_bpe is not None
    assert gpt2.encode(text).tolist() == reference_ids(gpt2, text)
    assert gpt2.decode(gpt2.encode(text)) == text


_LOADED: dict[Path, Tokenizer] = {}


def _gpt2(folder: Path) -> Tokenizer:
    if folder not in _LOADED:
        _LOADED[folder] = resolve_tokenizer(folder / "gpt2")
    return _LOADED[folder]


def test_merge_that_tiktoken_would_do_differently_is_left_to_tokenizers(byte_bpe: Tokenizer) -> None:
    spec = spec_of(byte_bpe)
    model = spec["model"]
    assert isinstance(model, dict)
    model["vocab"] |= {"qx": len(model["vocab"]), "zqx": len(model["vocab"]) + 1}
    model["merges"].append(["z", "qx"])  # "qx" is never made
    assert Tokenizer(spec)._byte_bpe is None


@pytest.mark.parametrize("change", ["normalizer", "prefix", "added"])
def test_file_that_does_more_than_byte_bpe_is_left_to_tokenizers(byte_bpe: Tokenizer, change: str) -> None:
    spec = spec_of(byte_bpe)
    if change == "normalizer":
        spec["normalizer"] = {"type": "NFC"}
    elif change == "prefix":
        spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    else:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        added = spec["added_tokens"]
        assert isinstance(added, list)
        added.append({"id": 600, "content": "    ", **flags})
    tokenizer = Tokenizer(spec)
    assert tokenizer._byte_bpe is None
    text = "a    b  c"
    assert tokenizer.encode(text).tolist() == reference_ids(tokenizer, text)


def test_token_starts_are_the_bytes_before_them(byte_bpe: Tokenizer) -> None:
    tokenized = byte_bpe.encode_batch(["数据 chunk", "", "é"])
    for m, text in enumerate(["数据 chunk", "", "é"]):
        part = slice(tokenized.text_offsets[m], tokenized.text_offsets[m + 1])
        starts = tokenized.starts[part].tolist()
        assert starts == [len(byte_bpe.decode_bytes(tokenized.tokens[part][:n])) for n in range(len(starts))]
        assert byte_bpe.decode_bytes(tokenized.tokens[part]) == text.encode()


def test_saved_tokenizer_has_the_same_digest_and_bytes(byte_bpe: Tokenizer, unigram: Tokenizer, tmp_path: Path) -> None:
    for tokenizer in (byte_bpe, unigram):
        tokenizer.save(tmp_path / "tokenizer.json")
        again = Tokenizer.load(tmp_path)
        assert again.digest == tokenizer.digest
        assert (tmp_path / "tokenizer.json").read_bytes() == again.to_bytes()
        assert again.encode("the chunk 数").tolist() == tokenizer.encode("the chunk 数").tolist()


def test_padding_and_truncation_in_the_file_are_switched_off(byte_bpe: Tokenizer) -> None:
    spec = spec_of(byte_bpe)
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer(spec)
    assert len(tokenizer.encode("one two three four five six seven")) > 4
    assert tokenizer.digest == byte_bpe.digest


def test_training_gives_the_same_tokenizer_in_any_order() -> None:
    once, again = train_byte_bpe(SENTENCES, 400), train_byte_bpe(reversed(SENTENCES), 400)
    assert once.digest == again.digest
    assert once.vocab_size <= 400
    assert once.id_of("<|endoftext|>") == 0
    assert once.is_lossless
    with pytest.raises(UsageError, match="257"):
        train_byte_bpe(SENTENCES, 100)


@pytest.mark.parametrize("character", [" ", "a", "\u0301", "数", "\n"])
def test_training_on_a_very_long_run_takes_the_time_of_a_short_one(character: str) -> None:
    trained = train_byte_bpe([*SENTENCES, character * 1_000_000], 300)
    assert trained.digest == train_byte_bpe([*SENTENCES, character * 4_096], 300).digest


def test_token_width_follows_the_vocabulary(byte_bpe: Tokenizer) -> None:
    assert byte_bpe.token_dtype == np.uint16
    spec = spec_of(byte_bpe)
    model = spec["model"]
    assert isinstance(model, dict)
    model["vocab"]["far"] = 65_536
    assert Tokenizer(spec).token_dtype == np.uint32


@pytest.mark.parametrize("settings", [{"model_type": "unigram"}, {"model_type": "bpe", "byte_fallback": True}])
def test_sentencepiece_model_gives_its_own_ids(
    train_sentencepiece: Callable[..., Path], settings: dict[str, object]
) -> None:
    import sentencepiece

    path = train_sentencepiece(vocab_size=500, **settings)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = resolve_tokenizer(path)
    for text in [*SAMPLE, *SENTENCES[:6], "a\0b"]:
        assert tokenizer.encode(text).tolist() == reference.encode(text)


def test_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vocab\.bpe.*tokenizer train"):
        resolve_tokenizer(tmp_path)


def test_unknown_name_says_that_the_hub_was_tried() -> None:
    with pytest.raises(InputError, match="hub"):
        resolve_tokenizer("no-such-organisation/no-such-tokenizer")


@pytest.mark.parametrize("content", [b"not json", b"[]", b'{"model": {"type": "Nonsense"}}'])
def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(InputError, match="tokenizer"):
        resolve_tokenizer(tmp_path / "t.json")


def test_cased_vocabulary_keeps_case(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\nThe\nthe\n")
    tokenizer = resolve_tokenizer(tmp_path)
    assert tokenizer.encode("The the").tolist() == [2, 3]


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece", "unigram", "byte_fallback_bpe"])
@pytest.mark.parametrize("every", [2, 7, 64])
def test_starts_of_every_nth_token_are_those_of_all(request: pytest.FixtureRequest, kind: str, every: int) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    texts = [*SAMPLE, "", "a", " \n", "e\u0301\u0323 한국어 ᄒ\u1161\u11ab 数据 " * 30, "İı ﬁ ½ Å \u0344\u0f73 " * 40]
    whole, some = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, starts_every=every)
    np.testing.assert_array_equal(whole.tokens, some.tokens)
    parts = [whole.starts[first:end][::every] for first, end in pairwise(whole.text_offsets.tolist())]
    np.testing.assert_array_equal(some.starts, np.concatenate(parts))
