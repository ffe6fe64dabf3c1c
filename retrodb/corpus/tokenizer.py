"""The language model's tokenizer: text -> token ids, and where in the text each token begins.

Every tokenizer is kept as one JSON file, whatever it came as: that of `tokenizers`, or a SentencePiece model in JSON.
Only the text itself is tokenized: no special token is added, what looks like one ("<|endoftext|>" in an article) is
ordinary text, and padding and truncation that are baked into a file are switched off.

A byte belongs to the first token that covers it. A token that covers no byte of its own (the dummy prefix of SentencePiece
models, the second byte token of one character where the tokenizer only tells characters) begins where the token before it
ends.

T tokens, M texts, S of the tokens whose starts are asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from retrodb.corpus.byte_bpe import ByteBPE, byte_bpe_of
from retrodb.corpus.sentencepiece_model import SentencePieceModel
from retrodb.errors import InputError

UINT16_VOCABULARY = 65_536  # the largest vocabulary whose ids are stored in two bytes
# Both engines must agree on this before tiktoken is used: each script, contractions, digits, every kind of white space
# that is not a plain blank, marks, emoji with joiners, controls, unassigned and private characters.
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


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of some texts, one after the other."""

    tokens: np.ndarray[Any, Any]  # (T,) ids, `Tokenizer.token_dtype`
    text_offsets: np.ndarray[Any, Any]  # (M + 1,) int64; text m has tokens [text_offsets[m], text_offsets[m + 1])
    starts: np.ndarray[Any, Any]  # (S,) int64; the byte, in its own text's UTF-8, at which every n-th token begins


class Tokenizer:
    """A tokenizer, loaded. Two are the same when their digests are."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Args:
            spec: the parsed file.

        Raises:
            InputError: `tokenizers` does not understand it.
            MissingDependency: a SentencePiece model, without the extra.
        """
        spec = {**spec, "padding": None, "truncation": None}
        self._json = orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)
        self.digest = hashlib.sha256(self._json).hexdigest()  # of the canonical file
        self.kind = _kind_of(spec)  # "byte-bpe", "bpe", "unigram", "wordpiece", "wordlevel" or "sentencepiece"
        self._model = SentencePieceModel(spec) if self.kind == "sentencepiece" else _FileModel(self._json)
        self.vocab_size = self._model.vocab_size  # ids are below it
        self.token_dtype = np.dtype(np.uint16 if self.vocab_size <= UINT16_VOCABULARY else np.uint32)
        self.is_lossless = _is_lossless(spec)  # tokens alone give the text back, byte for byte
        self._byte_bpe = self._checked_byte_bpe(spec)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a `tokenizers` JSON file, or of the folder that holds `tokenizer.json`.

        Raises:
            InputError: there is none, or it cannot be used.
        """
        file = Path(path, "tokenizer.json") if os.path.isdir(path) else Path(path)
        try:
            spec = orjson.loads(file.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(f"no tokenizer ({error})", where=str(file), remedy="Name a tokenizer file.") from error
        if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
            raise InputError("JSON, but no tokenizer", where=str(file), remedy="Name a `tokenizers` JSON file.")
        return cls(spec)

    def save(self, path: str | Path) -> None:
        """Write the canonical file: loading it gives the same digest."""
        Path(path).write_bytes(self._json)

    def to_bytes(self) -> bytes:
        """The canonical file's bytes, whose SHA-256 is the digest."""
        return self._json

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1, *, starts_every: int = 1) -> Tokenized:
        """The tokens of each text on its own; the same whatever `num_threads` is.

        Tokenizers other than byte-level BPE use all cores or one (`tokenizers` has one pool a process).

        Args:
            starts_every: n gives the starts of tokens 0, n, 2n, ... of each text; the others cost a sixth of the time.
        """
        if self._byte_bpe is not None:
            return self._encode_bytes(self._byte_bpe, texts, num_threads, starts_every)
        return self._encode_characters(texts, num_threads, starts_every)

    def encode(self, text: str) -> np.ndarray[Any, Any]:
        """The tokens (T,) of one text."""
        return self.encode_batch([text]).tokens

    def decode(self, tokens: Sequence[int] | np.ndarray[Any, Any]) -> str:
        """The text that the tokens stand for; bytes that are no character become U+FFFD."""
        if self._byte_bpe is not None:
            return self.decode_bytes(tokens).decode("utf-8", "replace")
        return self._model.decode([int(token) for token in tokens])

    def decode_bytes(self, tokens: Sequence[int] | np.ndarray[Any, Any]) -> bytes:
        """The bytes that the tokens stand for: exact for a lossless tokenizer, even in the middle of a character."""
        if self._byte_bpe is None:
            return self.decode(tokens).encode()
        known = self._byte_bpe.token_bytes
        return b"".join(
            known[int(token)] if int(token) in known else self._model.decode([int(token)]).encode() for token in tokens
        )

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name ("<|endoftext|>"), if the vocabulary has it."""
        return self._model.id_of(token)

    def _checked_byte_bpe(self, spec: dict[str, Any]) -> ByteBPE | None:
        byte_bpe = byte_bpe_of(spec, self._model.tokenizer) if isinstance(self._model, _FileModel) else None
        if byte_bpe is None:
            return None
        ours = self._encode_bytes(byte_bpe, SAMPLE, 1, 1)
        theirs = self._encode_characters(SAMPLE, 1, 1)
        is_same = np.array_equal(ours.tokens, theirs.tokens) and np.array_equal(ours.text_offsets, theirs.text_offsets)
        return byte_bpe if is_same else None

    def _encode_bytes(self, byte_bpe: ByteBPE, texts: Sequence[str], num_threads: int, every: int) -> Tokenized:
        parts = byte_bpe.encode(texts, num_threads)
        text_offsets = _offsets_of([len(part) for part in parts])
        ranks_T = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)
        ends_T = np.cumsum(byte_bpe.num_bytes(ranks_T))
        # Bytes before each text = end of the last token before it: all bytes are some token's.
        before_M = np.concatenate(([0], ends_T))[text_offsets[:-1]]
        starts_T = np.concatenate(([0], ends_T[:-1])) if len(ends_T) else ends_T
        starts_T -= np.repeat(before_M, np.diff(text_offsets))
        starts_S = starts_T[_every_nth(text_offsets, every)]
        return Tokenized(byte_bpe.ids(ranks_T).astype(self.token_dtype), text_offsets, starts_S)

    def _encode_characters(self, texts: Sequence[str], num_threads: int, every: int) -> Tokenized:
        encodings = self._model.encode(texts, num_threads, every)
        text_offsets = _offsets_of([len(ids) for ids, _ in encodings])
        num_tokens = int(text_offsets[-1])
        # chain runs in C: generator expressions here cost a fifth of the tokenization.
        tokens_T = np.fromiter(chain.from_iterable(ids for ids, _ in encodings), self.token_dtype, num_tokens)
        span_offsets = _offsets_of([len(spans) for _, spans in encodings])
        ends = chain.from_iterable(chain.from_iterable(spans for _, spans in encodings))
        spans_S2 = np.fromiter(ends, np.int64, 2 * int(span_offsets[-1])).reshape(-1, 2)
        if not isinstance(self._model, SentencePieceModel):
            return Tokenized(tokens_T, text_offsets, _byte_starts(spans_S2, span_offsets, texts))
        starts_T = _byte_starts(self._model.spread_bytes(tokens_T, spans_S2), text_offsets, texts)
        return Tokenized(tokens_T, text_offsets, starts_T[_every_nth(text_offsets, every)])


class _FileModel:
    """A `tokenizers` file as that library computes it."""

    def __init__(self, content: bytes) -> None:
        import tokenizers

        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:
            raise InputError(f"not a usable tokenizer ({error})", remedy="Name a `tokenizers` JSON file.") from error
        self.tokenizer.encode_special_tokens = True  # as ordinary text, that is
        self.vocab_size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(
        self, texts: Sequence[str], num_threads: int, every: int
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, characters [begin, end) that every n-th token covers first) per text."""
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


def _spans_of_every(encoding: Any, every: int) -> list[tuple[int, int]]:
    """Spans of tokens 0, n, 2n, ..., without what the token before each covers: ends never decrease in a text."""
    spans = []
    for index in range(0, len(encoding), every):
        begin, end = encoding.token_to_chars(index)
        covered = encoding.token_to_chars(index - 1)[1] if index else 0
        spans.append((max(begin, covered), end))
    return spans


def _byte_starts(
    spans_T2: np.ndarray[Any, Any], text_offsets: np.ndarray[Any, Any], texts: Sequence[str]
) -> np.ndarray[Any, Any]:
    """Bytes (T,) at which tokens begin, from the characters [begin, end) that they cover in their own text."""
    chars_before = _offsets_of([len(text) for text in texts])
    content = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
    byte_of_char = np.append(np.flatnonzero((content & 0xC0) != 0x80), len(content))  # first bytes, and the end
    spans_T2 = byte_of_char[spans_T2 + np.repeat(chars_before[:-1], np.diff(text_offsets))[:, None]]
    bytes_before_M = byte_of_char[chars_before[:-1]]
    # What an earlier token covers is not covered again; texts lie one after the other, so one running maximum serves all.
    covered_T = np.maximum.accumulate(spans_T2[:, 1]) if len(spans_T2) else spans_T2[:, 1]
    starts_T = np.maximum(spans_T2[:, 0], np.concatenate(([0], covered_T))[: len(spans_T2)])
    return np.asarray(starts_T - np.repeat(bytes_before_M, np.diff(text_offsets)))


def _every_nth(text_offsets: np.ndarray[Any, Any], every: int) -> np.ndarray[Any, Any]:
    """Indices (S,) of tokens 0, n, 2n, ... of each text."""
    counts_M = -(-np.diff(text_offsets) // every)
    row_S = np.arange(int(counts_M.sum())) - np.repeat(np.cumsum(counts_M) - counts_M, counts_M)
    return np.asarray(np.repeat(text_offsets[:-1], counts_M) + every * row_S)


def _offsets_of(lengths: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)


def _is_lossless(spec: dict[str, Any]) -> bool:
    """Byte-level BPE with nothing done to the text before; others lose blanks, case or unknown characters."""
    pre = spec.get("pre_tokenizer") or {}
    last = (pre.get("pretokenizers") or [pre])[-1]
    is_byte_level = last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True)
    return is_byte_level and spec.get("normalizer") is None and spec["model"].get("type") == "BPE"


def _kind_of(spec: dict[str, Any]) -> str:
    kind = str(spec["model"].get("type", "unknown")).lower()
    pre = spec.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers") or [pre]
    return "byte-bpe" if kind == "bpe" and steps[-1].get("type") == "ByteLevel" else kind
