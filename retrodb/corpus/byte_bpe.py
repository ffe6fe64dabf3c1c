"""Byte-level BPE with tiktoken, used if it is proven equal to the `tokenizers` file.

tiktoken is 5 times faster (measured: 19 to 23 MB/s per core, `tokenizers` 4 MB/s). It merges by one rule: of all adjacent
tokens whose joined bytes are a token, it joins the pair whose token has the lowest rank. `tokenizers` joins only pairs of
its merge list, the lowest position first. With rank = position in the list the two are equal if

1. no two merges give the same bytes,
2. both parts of each merge are single bytes or the result of an earlier merge, and
3. every merged token, tokenized alone, gives itself.

Proof. Take a text in which all merges below r are done. Let c and d be adjacent tokens whose joined bytes are the token
t = a + b of merge r. No merge crossed the ends of c or d, so between these ends the same merges were done as in t alone.
By 2, only merges below r are done there before t is merged. By 1 and 3, they give (a, b). So (c, d) = (a, b). By 3, the
result is also equal although tiktoken looks up a whole word first. The word pattern runs on another regex engine. This is
checked with a sample when a file is loaded, and over all of Unicode in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retrodb.corpus.tokenizer_checks import byte_characters, byte_values, native_errors
from retrodb.corpus.tokenizer_json import PreTokenizerJson, TokenizerJson
from retrodb.errors import InputError
from retrodb.format.arrays import Int64Array, UInt32Array

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# tiktoken needs one special token. This one is two noncharacters. It is never allowed, so in a text it is ordinary text.
_UNUSED = "\U0010fffe\U0010ffff"
_THREAD_TEXTS = 64  # texts that a thread gets at a time


class ByteBPE:
    """The byte-level BPE of a tokenizer file, computed by tiktoken."""

    def __init__(
        self, encoding: tiktoken.Encoding, tokenizer: tokenizers.Tokenizer, ids: Int64Array, lengths: list[int]
    ) -> None:
        self._encoding, self._tokenizer = encoding, tokenizer
        self._ids_R = ids  # (ranks,) tiktoken rank -> id in the tokenizer file
        self._num_bytes_R = np.array(lengths, dtype=np.int64)

    def encode(self, texts: Sequence[str], num_threads: int) -> list[UInt32Array]:
        """Ranks (T,) uint32 of each text."""
        if num_threads <= 1 or len(texts) < 2:
            return [self._encode(text) for text in texts]
        with ThreadPoolExecutor(num_threads) as pool:  # tiktoken releases the GIL
            return list(pool.map(self._encode, texts, chunksize=_THREAD_TEXTS))

    def _encode(self, text: str) -> UInt32Array:
        core = self._encoding._core_bpe  # the public method also scans the text for special tokens
        try:
            with native_errors("tiktoken fails at a text"):
                return np.frombuffer(core.encode_to_tiktoken_buffer(text, set()), dtype=np.uint32)
        except InputError:  # its regex engine has a limit, which a run of some 100,000 blanks exceeds
            return self._encode_slowly(text)

    def _encode_slowly(self, text: str) -> UInt32Array:
        """The same ranks, computed by `tokenizers`."""
        with native_errors("the tokenizer fails at a text"):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._rank_of_id[ids]

    @cached_property
    def _rank_of_id(self) -> UInt32Array:
        rank_of_id = np.zeros(int(self._ids_R.max()) + 1, dtype=np.uint32)
        rank_of_id[self._ids_R] = np.arange(len(self._ids_R), dtype=np.uint32)
        return rank_of_id

    def ids(self, ranks: UInt32Array) -> Int64Array:
        """The ids, in the tokenizer file, of ranks."""
        return np.asarray(self._ids_R[ranks])

    def num_bytes(self, ranks: UInt32Array) -> Int64Array:
        """The number of bytes of each token."""
        return np.asarray(self._num_bytes_R[ranks])


def byte_bpe_of(spec: TokenizerJson, tokenizer: tokenizers.Tokenizer) -> ByteBPE | None:
    """The BPE of a tokenizer file for tiktoken, or None if they are not proven equal.

    Args:
        spec: the parsed tokenizer file.
        tokenizer: the same file, loaded by `tokenizers`.
    """
    model, pattern = spec["model"], _pattern_of(spec)
    is_plain = not (model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    ordinary_added = [token for token in spec.get("added_tokens") or [] if not token.get("special")]
    if pattern is None or not is_plain or spec.get("normalizer") is not None or ordinary_added:
        return None
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    merged = ["".join(merge) for merge in merges]
    if not _is_same_rule(model["vocab"], merges, merged, tokenizer, bool(model.get("ignore_merges"))):
        return None
    return _build(model["vocab"], merged, pattern, tokenizer)


def _pattern_of(spec: TokenizerJson) -> str | None:
    """The pattern that cuts text into words; None if words are changed by more than the mapping of bytes."""
    pre: PreTokenizerJson = spec.get("pre_tokenizer") or {}
    if spec["model"].get("type") != "BPE":
        return None
    if _is_bytes(pre) and pre.get("use_regex", True):
        return GPT2_PATTERN
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else []
    if len(steps) != 2 or not _is_bytes(steps[1]) or steps[1].get("use_regex", True):
        return None
    split = steps[0]
    is_plain_split = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
    return split["pattern"].get("Regex") if is_plain_split else None


def _is_bytes(step: PreTokenizerJson) -> bool:
    return step.get("type") == "ByteLevel" and not step.get("add_prefix_space", True)


def _is_same_rule(
    vocab: dict[str, int],
    merges: list[tuple[str, ...]],
    merged: list[str],
    tokenizer: tokenizers.Tokenizer,
    ignores_merges: bool,
) -> bool:
    """Conditions 1 to 3 of the module docstring, and that the vocabulary has every byte."""
    characters = set(byte_characters().values())
    known = set(characters)
    for merge, token in zip(merges, merged, strict=True):
        if len(merge) != 2 or token in known or not known.issuperset(merge) or token not in vocab:
            return False
        known.add(token)
    if not characters <= vocab.keys() or (ignores_merges and not known >= vocab.keys()):
        return False
    tokenize = tokenizer.model.tokenize
    return all(len(tokenize(token)) == 1 for token in merged)


def _build(vocab: dict[str, int], merged: list[str], pattern: str, tokenizer: tokenizers.Tokenizer) -> ByteBPE | None:
    import tiktoken

    characters, values = byte_characters(), byte_values()
    tokens = [*(characters[value] for value in range(256)), *merged]  # in the order of ranks
    as_bytes = [bytes(values[character] for character in token) for token in tokens]
    ranks = {content: rank for rank, content in enumerate(as_bytes)}
    try:
        with native_errors("tiktoken does not have this pattern"):
            encoding = tiktoken.Encoding(
                "retrodb", pat_str=pattern, mergeable_ranks=ranks, special_tokens={_UNUSED: len(ranks)}
            )
    except InputError:
        return None
    ids = np.array([vocab[token] for token in tokens], dtype=np.int64)
    return ByteBPE(encoding, tokenizer, ids, [len(content) for content in as_bytes])
