"""Token ids of chunk texts, with a cache of words if the tokenizer allows it.

A WordPiece tokenizer handles each run of characters between white space separately, and most runs repeat. A dictionary from
runs to ids has nearly all of them; the tokenizer computes the others. This is exact if text is cut only where the tokenizer
cuts it: at the characters of `WHITE_SPACE`. (`str.split` also cuts at control characters. BERT removes these, and joins the
characters around them.)

This module adds the special tokens, not the tokenizer. They are never read from the text: the text "[SEP]" is ordinary text.

Shapes: N texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, cast

import numpy as np

from retrodb.corpus.tokenizer_checks import native_errors
from retrodb.corpus.tokenizer_json import TokenizerJson
from retrodb.encode.identity import digest_json
from retrodb.errors import InputError
from retrodb.format.arrays import Int32Array, Int64Array, TokenArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHITE_SPACE = " \t\n\r\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
RUNS = re.compile(f"[^{WHITE_SPACE}]+")
# A full cache has about 150 MB. It is then emptied instead of frozen, because the vocabulary of a corpus changes.
MAX_CACHED_RUNS = 1_000_000
# Longer runs are URLs, base64, or text in a script without spaces. They rarely repeat.
MAX_RUN_CHARS = 48


@dataclass(frozen=True)
class TokenIds:
    """The token ids of N texts, one text after the other, including special tokens."""

    ids: TokenArray  # dtype by the size of the vocabulary
    offsets: Int64Array  # (N + 1,) text i is ids[offsets[i]:offsets[i + 1]]
    num_truncated: int  # texts whose end was cut off

    @property
    def lengths_N(self) -> Int32Array:
        """Tokens of each text."""
        return np.diff(self.offsets).astype(np.int32)


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer as plain values, which can be compared, hashed and sent to another process."""

    tokenizer_json: str  # Hugging Face `tokenizer.json` without padding and truncation
    max_length: int  # tokens, including special tokens
    max_cached_runs: int = MAX_CACHED_RUNS

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, which does not depend on the formatting of the file."""
        return digest_json(json.loads(self.tokenizer_json))


def tokenize(spec: TokenizerSpec, texts: list[str]) -> TokenIds:
    """Token ids of the texts. Each process keeps the tokenizer of a spec and its cache."""
    return _load(spec).encode(texts)


@lru_cache(maxsize=4)
def _load(spec: TokenizerSpec) -> ChunkTokenizer:
    return ChunkTokenizer(spec)


class ChunkTokenizer:
    """Encodes chunk texts as `[CLS] text [SEP]`, or as the template of the tokenizer requires."""

    def __init__(self, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        with native_errors("not a usable tokenizer", remedy="Download the model again."):
            self.tokenizer: Tokenizer = Tokenizer.from_str(spec.tokenizer_json)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # this encodes "[SEP]" in a text as text
        # One more than the highest id of the tokenizer.
        self.num_ids = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = np.dtype(np.uint16 if self.num_ids <= 1 << 16 else np.uint32)
        before, after = framing_ids(self.tokenizer)
        self.num_special = len(before), len(after)
        self.prefix, self.suffix = self._pack(before), self._pack(after)
        self.max_bytes = spec.max_length * self.dtype.itemsize - len(self.prefix) - len(self.suffix)
        self.max_cached_runs = spec.max_cached_runs
        self.is_cached = is_cacheable(json.loads(spec.tokenizer_json))
        self.cache: dict[str, bytes] = {}
        self.lock = Lock()

    def encode(self, texts: list[str]) -> TokenIds:
        """Ids of the texts with special tokens, cut off at the maximum length."""
        with self.lock:  # queries may be encoded while passages are encoded
            contents = self._encode_runs(texts) if self.is_cached else self._encode_plain(texts)
        whole = [self.prefix + content[: self.max_bytes] + self.suffix for content in contents]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(content) for content in whole], out=offsets[1:])
        return TokenIds(
            ids=np.frombuffer(b"".join(whole), self.dtype),
            offsets=offsets // self.dtype.itemsize,
            num_truncated=sum(len(content) > self.max_bytes for content in contents),
        )

    def _encode_plain(self, texts: list[str]) -> list[bytes]:
        with native_errors("the tokenizer of the encoder fails at a text", remedy="Use another encoder."):
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._pack(encoding.ids) for encoding in encodings]

    def _encode_runs(self, texts: list[str]) -> list[bytes]:
        runs = [RUNS.findall(text) for text in texts]
        # Ids are stored as packed bytes, so that the ids of a text are one join in C.
        contents = [_join(self.cache, runs_of_text) for runs_of_text in runs]
        unknown = [row for row, content in enumerate(contents) if content is None]
        ids_of = self._learn([runs[row] for row in unknown])
        for row in unknown:
            contents[row] = _join(ids_of, runs[row])
        return cast(list[bytes], contents)

    def _learn(self, runs: list[list[str]]) -> dict[str, bytes]:
        """A dictionary with all these runs: the cache, and the runs that are too long for the cache."""
        if len(self.cache) > self.max_cached_runs:
            self.cache.clear()
        missing = [run for run in set().union(*runs) if run not in self.cache]
        ids_of = dict(zip(missing, self._encode_plain(missing), strict=True))
        self.cache.update((run, ids) for run, ids in ids_of.items() if len(run) <= MAX_RUN_CHARS)
        long_runs = {run: ids for run, ids in ids_of.items() if len(run) > MAX_RUN_CHARS}
        return self.cache | long_runs if long_runs else self.cache

    def _pack(self, ids: Iterable[int]) -> bytes:
        return np.array(ids, self.dtype).tobytes()


def _join(ids_of: dict[str, bytes], runs: list[str]) -> bytes | None:
    """The ids of all runs, or None if one is not in the dictionary."""
    try:
        return b"".join(map(ids_of.__getitem__, runs))
    except KeyError:
        return None


def framing_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the template of the tokenizer adds before and after one text.

    Raises:
        InputError: the template has no place for a text, or gives a token type other than 0, which models of XLNet need.
    """
    with native_errors("the template of the tokenizer is not usable", remedy="Download the model again."):
        encoding = tokenizer.encode("a")
    text_indices = [index for index, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    if not text_indices:
        raise InputError("the tokenizer gives no token for a text", remedy="Use another encoder.")
    if any(encoding.type_ids):
        raise InputError(
            f"the tokenizer gives tokens the types {encoding.type_ids}, and retrodb computes with type 0 only",
            remedy="Use another encoder.",
        )
    return encoding.ids[: text_indices[0]], encoding.ids[text_indices[-1] + 1 :]


def is_cacheable(spec: TokenizerJson) -> bool:
    """Whether a tokenizer handles each run between white space separately.

    That of BERT does, unless it has added tokens that are not special: they may contain white space.
    """
    model, normalizer, pre_tokenizer = spec.get("model"), spec.get("normalizer"), spec.get("pre_tokenizer")
    kinds = tuple((part or {}).get("type") for part in (model, normalizer, pre_tokenizer))
    is_bert = kinds == ("WordPiece", "BertNormalizer", "BertPreTokenizer")
    return is_bert and all(token.get("special") for token in spec.get("added_tokens") or [])
