"""The tokenizer of the language model: text -> token ids, and the byte of the text at which each token begins.

Every tokenizer is stored as one JSON file: that of `tokenizers`, or a SentencePiece model in JSON. Only the text itself is
tokenized. No special token is added, the text of a special token ("<|endoftext|>" in an article) is ordinary text, and
padding, truncation and dropout that a file defines are switched off.

A byte belongs to the first token that covers it. Some tokens cover no byte that is not covered already: the dummy prefix of
SentencePiece models, or the second byte token of a character if the tokenizer only gives positions of characters. Such a
token begins where the token before it ends.

T tokens, M texts, S tokens whose starts are wanted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import orjson

from retrodb.corpus.byte_bpe import ByteBPE, byte_bpe_of
from retrodb.corpus.sentencepiece_model import SentencePieceModel
from retrodb.corpus.tokenizer_checks import (
    bytes_of_token,
    is_lossless_file,
    native_errors,
    pre_tokenizer_steps,
    refuse_crashing_merges,
    require_unknown_token,
    without_randomness,
)
from retrodb.corpus.tokenizer_json import TokenizerJson
from retrodb.errors import InputError
from retrodb.format.arrays import AnyArray, Int64Array, TokenArray

if TYPE_CHECKING:
    import tokenizers

UINT16_VOCABULARY = 65_536  # the largest vocabulary whose ids are stored in two bytes
# Both libraries must agree on this sample before tiktoken is used. It has all scripts, contractions, digits, every kind of
# white space, marks, emoji with joiners, controls, and unassigned and private characters.
SAMPLE = (
    "The quick brown fox, it's 12,345.67 dollars; WE'LL they'RE don't  \n\n\t x  ",
    "def f(x):\n    return {'a': x**2}  # <|endoftext|> </s> [SEP]\r\n\r\n\r   ",
    "Größe naïve Ǆ ǅ ʰ ª Ⅷ ½ ² ٣ ৪ 〇 零 ㊀ 𝟘 ①②",
    "数据库检索增强语言模型。トークン化のテスト、한국어 문장 분석 조각 ᄀᆞ",
    "العَرَبِيَّة עִבְרִית हिन्दी ภาษาไทย русский ελληνικά ქართული አማርኛ தமிழ்",
    "\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000 \u0085 \u000b\u000c\u001c\u001f a\u00a0b  \u3000 c",
    "👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 👍🏽 e\u0301\u0323 \u200b\ufeff\u00ad\u200d \u0000\u0001\u007f",
    "\ue000\uf8ff \ufffd\U0010ffff \u0378 \U0001f9ff",
    "aaaaaaaaaaaaaaaaaaaaaaaa          " + "ab" * 40 + "-" * 70 + "\n" * 9,
)


def read_spec(file: Path) -> TokenizerJson:
    """The parsed `tokenizers` JSON file.

    Raises:
        InputError: there is no such file, or it is not a tokenizer.
    """
    try:
        spec = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"not a tokenizer ({error})", where=str(file), remedy="Name a tokenizer file.") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise InputError("JSON, but not a tokenizer", where=str(file), remedy="Name a `tokenizers` JSON file.")
    return cast("TokenizerJson", spec)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of M texts, one text after the other."""

    tokens: TokenArray  # (T,) ids, `Tokenizer.token_dtype`
    text_offsets: Int64Array  # (M + 1,) text m has tokens [text_offsets[m], text_offsets[m + 1])
    starts: Int64Array  # (S,) the byte of its text, in UTF-8, at which every n-th token begins


class Tokenizer:
    """A loaded tokenizer. Two tokenizers with equal digests are equal."""

    def __init__(self, spec: TokenizerJson) -> None:
        """Args:
            spec: the parsed file.

        Raises:
            InputError: `tokenizers` cannot read it, or it fails at unknown words.
            MissingDependency: it is a SentencePiece model, and sentencepiece is not installed.
        """
        spec = without_randomness(spec)
        self._json = orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)
        self.digest = hashlib.sha256(self._json).hexdigest()  # SHA-256 of the canonical file
        is_sentencepiece = spec["model"].get("type") == "SentencePiece"
        self._model = SentencePieceModel(spec) if is_sentencepiece else _FileModel(spec, self._json)
        self.kind = _kind_of(spec)  # "byte-bpe", "bpe", "unigram", "wordpiece", "wordlevel" or "sentencepiece"
        self.vocab_size = self._model.vocab_size  # ids are below it
        self.token_dtype = np.dtype(np.uint16 if self.vocab_size <= UINT16_VOCABULARY else np.uint32)
        self._byte_bpe = self._checked_byte_bpe(spec)
        self.is_lossless = self._proves_lossless(spec)  # the text can be decoded from its tokens, byte for byte

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a `tokenizers` JSON file, or of a folder with a `tokenizer.json`.

        Raises:
            InputError: there is no such file, or it cannot be used.
        """
        file = Path(path, "tokenizer.json") if os.path.isdir(path) else Path(path)
        spec = read_spec(file)
        try:
            return cls(spec)
        except InputError as error:
            raise InputError(error.what, where=error.where or str(file), remedy=error.remedy) from error

    def save(self, path: str | Path) -> None:
        """Write the canonical file. Loading it gives the same digest."""
        Path(path).write_bytes(self._json)

    def to_bytes(self) -> bytes:
        """The bytes of the canonical file."""
        return self._json

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1, *, starts_every: int = 1) -> Tokenized:
        """The tokens of each text. They do not depend on `num_threads`.

        Tokenizers other than byte-level BPE use one core or all cores, because `tokenizers` has one pool per process.

        Args:
            starts_every: n gives the starts of tokens 0, n, 2n, ... of each text. All starts take a sixth more time.
        """
        if self._byte_bpe is not None:
            return self._encode_bytes(self._byte_bpe, texts, num_threads, starts_every)
        return self._encode_characters(texts, num_threads, starts_every)

    def encode(self, text: str) -> TokenArray:
        """The tokens (T,) of one text."""
        return self.encode_batch([text]).tokens

    def decode(self, tokens: Sequence[int] | AnyArray) -> str:
        """The text of the tokens. Bytes that are not a character become U+FFFD."""
        if self.is_lossless:
            return self.decode_bytes(tokens).decode("utf-8", "replace")
        return self._model.decode([int(token) for token in tokens])

    def decode_bytes(self, tokens: Sequence[int] | AnyArray) -> bytes:
        """The bytes of the tokens. They are exact for a lossless tokenizer, even in the middle of a character."""
        if not self.is_lossless:
            return self.decode(tokens).encode()
        return self._join_bytes(tokens)

    def _join_bytes(self, tokens: Sequence[int] | AnyArray) -> bytes:
        bytes_of = self._token_bytes
        ids = (int(token) for token in tokens)
        return b"".join(bytes_of[i] if i in bytes_of else self._model.decode([i]).encode() for i in ids)

    @cached_property
    def _token_bytes(self) -> dict[int, bytes]:
        """id -> bytes, for a lossless tokenizer. An ordinary added token is its text."""
        assert isinstance(self._model, _FileModel)
        spec: TokenizerJson = orjson.loads(self._json)
        bytes_of = {i: bytes_of_token(token) or token.encode() for token, i in spec["model"]["vocab"].items()}
        ids = self._model.tokenizer.token_to_id
        added = ((ids(token["content"]), token["content"]) for token in spec.get("added_tokens") or [])
        return {i: text.encode() for i, text in added if i is not None} | bytes_of

    def _proves_lossless(self, spec: TokenizerJson) -> bool:
        if not isinstance(self._model, _FileModel) or not is_lossless_file(spec, self._model.vocabulary):
            return False
        added = [token["content"] for token in spec.get("added_tokens") or []]
        texts = [*SAMPLE, *(f"a {text}  {text}\n\tb{text}c" for text in added[:100])]
        return all(self._join_bytes(self.encode(text)) == text.encode() for text in texts)

    def id_of(self, token: str) -> int | None:
        """The id of a token, such as "<|endoftext|>", if the vocabulary has it."""
        return self._model.id_of(token)

    def _checked_byte_bpe(self, spec: TokenizerJson) -> ByteBPE | None:
        byte_bpe = byte_bpe_of(spec, self._model.tokenizer) if isinstance(self._model, _FileModel) else None
        if byte_bpe is None:
            return None
        fast = self._encode_bytes(byte_bpe, SAMPLE, 1, 1)
        exact = self._encode_characters(SAMPLE, 1, 1)
        is_same = np.array_equal(fast.tokens, exact.tokens) and np.array_equal(fast.text_offsets, exact.text_offsets)
        return byte_bpe if is_same else None

    def _encode_bytes(self, byte_bpe: ByteBPE, texts: Sequence[str], num_threads: int, every: int) -> Tokenized:
        parts = byte_bpe.encode(texts, num_threads)
        text_offsets = _offsets_of([len(part) for part in parts])
        ranks_T = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)
        ends_T = np.cumsum(byte_bpe.num_bytes(ranks_T))
        # Every byte belongs to a token, so a text starts where the last token before it ends.
        before_M = np.concatenate(([0], ends_T))[text_offsets[:-1]]
        starts_T = np.concatenate(([0], ends_T[:-1])) if len(ends_T) else ends_T
        starts_T -= np.repeat(before_M, np.diff(text_offsets))
        starts_S = starts_T[_every_nth(text_offsets, every)]
        return Tokenized(byte_bpe.ids(ranks_T).astype(self.token_dtype), text_offsets, starts_S)

    def _encode_characters(self, texts: Sequence[str], num_threads: int, every: int) -> Tokenized:
        encodings = self._model.encode(texts, num_threads, every)
        text_offsets = _offsets_of([len(ids) for ids, _ in encodings])
        num_tokens = int(text_offsets[-1])
        # chain runs in C. Generator expressions take a fifth of the time of the tokenization.
        tokens_T = np.fromiter(chain.from_iterable(ids for ids, _ in encodings), self.token_dtype, num_tokens)
        span_offsets = _offsets_of([len(spans) for _, spans in encodings])
        ends = chain.from_iterable(chain.from_iterable(spans for _, spans in encodings))
        spans_S2 = np.fromiter(ends, np.int64, 2 * int(span_offsets[-1])).reshape(-1, 2)
        if not isinstance(self._model, SentencePieceModel):
            return Tokenized(tokens_T, text_offsets, _byte_starts(spans_S2, span_offsets, texts))
        starts_T = _byte_starts(self._model.spread_bytes(tokens_T, spans_S2), text_offsets, texts)
        return Tokenized(tokens_T, text_offsets, starts_T[_every_nth(text_offsets, every)])


class _FileModel:
    """A `tokenizers` file, computed by `tokenizers`."""

    def __init__(self, spec: TokenizerJson, content: bytes) -> None:
        import tokenizers

        with native_errors("not a usable tokenizer", remedy="Name a `tokenizers` JSON file."):
            refuse_crashing_merges(spec)
            self.tokenizer = tokenizers.Tokenizer.from_str(content.decode())
            self.tokenizer.encode_special_tokens = True  # as ordinary text
            self.vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
            require_unknown_token(spec, self.vocabulary)
        self.vocab_size = 1 + max(self.vocabulary.values())
        self.encode(SAMPLE, 1, 1)

    def encode(
        self, texts: Sequence[str], num_threads: int, every: int
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, characters [begin, end) that every n-th token covers and no earlier token) per text."""
        with native_errors("the tokenizer fails at a text"):
            if num_threads <= 1:
                encodings = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
            else:
                encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        if every == 1:
            return [(encoding.ids, encoding.offsets) for encoding in encodings]
        return [(encoding.ids, _spans_of_every(encoding, every)) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def id_of(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)


def _spans_of_every(encoding: tokenizers.Encoding, every: int) -> list[tuple[int, int]]:
    """Spans of tokens 0, n, 2n, ..., without the characters of the token before. Ends never decrease in a text."""
    span_of = cast("Callable[[int], tuple[int, int]]", encoding.token_to_chars)  # None only for special tokens
    spans = []
    for index in range(0, len(encoding), every):
        begin, end = span_of(index)
        covered = span_of(index - 1)[1] if index else 0
        spans.append((max(begin, covered), end))
    return spans


def _byte_starts(spans_T2: Int64Array, text_offsets: Int64Array, texts: Sequence[str]) -> Int64Array:
    """The bytes (T,) at which tokens begin, from the characters [begin, end) of their text that they cover."""
    chars_before = _offsets_of([len(text) for text in texts])
    content = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
    byte_of_char = np.append(np.flatnonzero((content & 0xC0) != 0x80), len(content))  # first bytes, and the end
    spans_T2 = byte_of_char[spans_T2 + np.repeat(chars_before[:-1], np.diff(text_offsets))[:, None]]
    bytes_before_M = byte_of_char[chars_before[:-1]]
    # Bytes of an earlier token are not covered again. Texts follow each other, so one running maximum is enough for all.
    covered_T = np.maximum.accumulate(spans_T2[:, 1]) if len(spans_T2) else spans_T2[:, 1]
    starts_T = np.maximum(spans_T2[:, 0], np.concatenate(([0], covered_T))[: len(spans_T2)])
    return np.asarray(starts_T - np.repeat(bytes_before_M, np.diff(text_offsets)))


def _every_nth(text_offsets: Int64Array, every: int) -> Int64Array:
    """Indices (S,) of tokens 0, n, 2n, ... of each text."""
    counts_M = -(-np.diff(text_offsets) // every)
    row_S = np.arange(int(counts_M.sum())) - np.repeat(np.cumsum(counts_M) - counts_M, counts_M)
    return np.asarray(np.repeat(text_offsets[:-1], counts_M) + every * row_S)


def _offsets_of(lengths: Sequence[int]) -> Int64Array:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)


def _kind_of(spec: TokenizerJson) -> str:
    kind = str(spec["model"].get("type", "unknown")).lower()
    return "byte-bpe" if kind == "bpe" and pre_tokenizer_steps(spec)[-1].get("type") == "ByteLevel" else kind
