"""Tokenizer files from anywhere: what they claim is true, or they are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrodb.corpus.chunking import chunk_documents
from retrodb.corpus.lm_tokenizer import SAMPLE, Tokenizer
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.errors import InputError, RetroDBError
from retrodb.format.json_codec import JsonObject

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
LOSSY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def changed(tokenizer: Tokenizer, **parts: object) -> JsonObject:
    spec: JsonObject = json.loads(tokenizer.to_bytes())
    return {**spec, **parts}  # type: ignore[dict-item]


def with_added(tokenizer: Tokenizer, *tokens: dict[str, object]) -> JsonObject:
    spec = json.loads(tokenizer.to_bytes())
    first = 1 + max(spec["model"]["vocab"].values())
    added = [{"id": first + n, **FLAGS, **token} for n, token in enumerate(tokens)]
    return {**spec, "added_tokens": [*spec["added_tokens"], *added]}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CUTS = [
    {"type": "Split", "pattern": {"Regex": r"\d|\s+"}, "behavior": behavior, "invert": invert}
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    for invert in (False, True)
]
CUTS += [{"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"}]
CUTS += [{"type": "Punctuation", "behavior": "Removed"}, {"type": "WhitespaceSplit"}, {"type": "UnicodeScripts"}]
CUTS += [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, BYTE_LEVEL]
NORMALIZERS = [None, None, None, {"type": "NFC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"}]
DECODERS = [BYTE_LEVEL, None, {"type": "Fuse"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}]
ADDED = st.fixed_dictionaries(
    {
        "content": st.sampled_from(["<think>", "é", "Ġ", " ", "  ", "\n", "ab", "the", "数据", "Ã©", "a b"]),
        "lstrip": st.booleans(),
        "rstrip": st.booleans(),
        "single_word": st.booleans(),
        "normalized": st.booleans(),
        "special": st.booleans(),
    }
)
FILES = st.fixed_dictionaries(
    {
        "added": st.lists(ADDED, max_size=2, unique_by=lambda token: token["content"]),
        "cuts": st.lists(st.sampled_from(CUTS), max_size=2),
        "normalizer": st.sampled_from(NORMALIZERS),
        "decoder": st.sampled_from(DECODERS),
        "prefix": st.sampled_from([False, False, False, True]),
        "missing": st.sampled_from([None, None, None, "Ġ", "Ĕ"]),
    }
)
PIECES = [
    "<think>",
    "é",
    "Ġ",
    " ",
    "  ",
    "\n",
    "\t",
    "ab",
    "abc",
    "the",
    "数据",
    "Ã©",
    "a b",
    "A",
    "1",
    ".",
    "\u0301",
    "\u00a0",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.characters(codec="utf-8")), max_size=30).map("".join)


def _decodes_if_it_says_so(byte_bpe: Tokenizer, file: dict[str, object], text: str) -> bool:
    spec = with_added(byte_bpe, *file["added"])  # type: ignore[misc]
    steps = [*file["cuts"], {**BYTE_LEVEL, "add_prefix_space": file["prefix"]}]  # type: ignore[misc]
    spec |= {"normalizer": file["normalizer"], "decoder": file["decoder"]}  # type: ignore[dict-item]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    if file["missing"]:
        del spec["model"]["vocab"][file["missing"]]  # type: ignore[index, arg-type, call-overload]
    try:
        tokenizer = Tokenizer(spec)  # type: ignore[arg-type]
    except InputError:
        return False
    if tokenizer.is_lossless:
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
        assert tokenizer.decode(tokenizer.encode(text)) == text
    return tokenizer.is_lossless


@LOSSY
@given(file=FILES, text=TEXTS)
def test_lossless_file_decodes_every_text(byte_bpe: Tokenizer, file: dict[str, object], text: str) -> None:
    _decodes_if_it_says_so(byte_bpe, file, text)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=FILES, text=TEXTS)
def test_many_lossless_files_decode_every_text(byte_bpe: Tokenizer, file: dict[str, object], text: str) -> None:
    _decodes_if_it_says_so(byte_bpe, file, text)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ({"content": "<think>"}, True),
        ({"content": "    "}, True),
        ({"content": "<think>", "lstrip": True}, False),
        ({"content": "<think>", "rstrip": True}, False),
        ({"content": "<think>", "lstrip": True, "special": True}, True),  # as a special token it is ordinary text
        ({"content": "é"}, False),  # it is also the byte 0xE9
        ({"content": "数"}, True),
    ],
)
def test_added_tokens_that_lose_text_are_not_lossless(
    byte_bpe: Tokenizer, token: dict[str, object], expected: bool
) -> None:
    tokenizer = Tokenizer(with_added(byte_bpe, token))  # type: ignore[arg-type]
    assert tokenizer.is_lossless is expected


def test_lossless_tokenizer_decodes_parts_of_characters_without_tiktoken(byte_bpe: Tokenizer) -> None:
    tokenizer = Tokenizer(with_added(byte_bpe, {"content": "<think>"}))  # type: ignore[arg-type]
    assert tokenizer._byte_bpe is None
    text = "a <think> 👩 é 数"
    tokens = tokenizer.encode(text)
    assert b"".join(tokenizer.decode_bytes([token]) for token in tokens) == text.encode()


@pytest.mark.parametrize("kind", ["dropout", "truncation", "padding"])
def test_ids_are_never_random_or_cut(byte_bpe: Tokenizer, kind: str) -> None:
    spec = changed(byte_bpe)
    if kind == "dropout":
        spec["model"]["dropout"] = 0.5  # type: ignore[index, call-overload]
    elif kind == "truncation":
        spec[kind] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    else:
        strategy = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None}
        spec[kind] = {**strategy, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}  # type: ignore[dict-item]
    tokenizer = Tokenizer(spec)  # type: ignore[arg-type]
    assert [tokenizer.encode(text).tolist() for text in SAMPLE] == [byte_bpe.encode(text).tolist() for text in SAMPLE]
    assert tokenizer.digest == byte_bpe.digest


# Vocabularies without what the model needs


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"type": "BPE", "vocab": {}, "merges": []}, "empty vocabulary"),
        ({"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"}, "empty vocabulary"),
        ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[NO]"}, r"WordLevel .* unknown token '\[NO\]'"),
        (
            {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[NO]", "continuing_subword_prefix": "##"}
            | {"max_input_chars_per_word": 100},
            r"WordPiece .* unknown token '\[NO\]'",
        ),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<no>"}, "BPE .* unknown token '<no>'"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None, "byte_fallback": False}, "Unigram .*unk_id"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None, "byte_fallback": True}, "fails at a text"),
        ({"type": "Unigram", "vocab": [], "unk_id": 0, "byte_fallback": False}, "not a usable tokenizer"),
    ],
)
def test_vocabulary_without_its_unknown_token_is_refused(tmp_path: Path, model: object, message: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(InputError, match=message) as caught:
        resolve_tokenizer(tmp_path / "t.json")
    assert str(tmp_path / "t.json") in str(caught.value)


def test_character_bpe_without_an_unknown_token_drops_characters_as_tokenizers_does() -> None:
    spec = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    assert Tokenizer(spec).encode("aéa").tolist() == [0, 0]  # type: ignore[arg-type]


# Texts that a library cannot compute


@pytest.mark.parametrize("character", [" ", "\n", "a", "\u0301", "\u00a0", "数", "👩"])
def test_long_run_of_one_character_has_the_ids_of_tokenizers(byte_bpe: Tokenizer, character: str) -> None:
    text = character * 300_000
    expected = byte_bpe._model.encode([text], 1, 1)[0][0]
    tokenized = byte_bpe.encode_batch(["the chunk", text, "a"], num_threads=2)
    first, end = tokenized.text_offsets[1:3]
    np.testing.assert_array_equal(tokenized.tokens[first:end], expected)
    assert byte_bpe.decode_bytes(tokenized.tokens) == f"the chunk{text}a".encode()


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece", "unigram", "byte_fallback_bpe"])
def test_document_of_a_million_blanks_is_cut(request: pytest.FixtureRequest, kind: str) -> None:
    import pyarrow as pa

    tokenizer: Tokenizer = request.getfixturevalue(kind)
    texts = ["the chunk", " " * 1_000_000, "a chunk"]
    chunks = chunk_documents(pa.array(texts, pa.large_string()), None, tokenizer)
    assert "".join(chunks.text.to_pylist()) == "".join(texts)


# Files that were damaged


def mutated(content: bytes, seed: int) -> bytes:
    """The file with one value replaced, one key removed, or some bytes changed."""
    rng = random.Random(seed)
    if seed % 3 == 0:
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    spec = json.loads(content)
    node, key = spec, rng.choice(list(spec))
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
        node = node[key]
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    if seed % 3 == 1:
        del node[key]
    else:
        node[key] = rng.choice([None, 0, -1, 2**40, 1.5, "", "x", [], {}, [[]], {"type": "x"}, True])
    return json.dumps(spec).encode()


def _refuses_or_encodes(content: bytes, seed: int, folder: Path) -> None:
    (folder / "t.json").write_bytes(mutated(content, seed))
    try:
        tokenizer = resolve_tokenizer(folder / "t.json")
        for text in ("the chunk 数 \u0301", " " * 50, ""):
            tokenizer.decode_bytes(tokenizer.encode(text))
    except RetroDBError:
        return


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
def test_damaged_file_is_refused_or_works(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    content = request.getfixturevalue(kind).to_bytes()
    for seed in range(60):
        _refuses_or_encodes(content, seed, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
def test_many_damaged_files_are_refused_or_work(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    content = request.getfixturevalue(kind).to_bytes()
    for seed in range(5_000):
        _refuses_or_encodes(content, seed, tmp_path)
