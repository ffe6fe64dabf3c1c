"""Token ids of chunk texts, with a word cache where the tokenizer allows one.

A WordPiece tokenizer treats each run between white space on its own, and the same runs come again and again: a dictionary from
run to ids answers nearly all of them, and the tokenizer itself is asked for the rest. That is exact as long as a cut is made
nowhere the tokenizer would not make one: only at the characters of `WHITE_SPACE`. (`str.split` also cuts at control
characters, which BERT deletes, joining what stands around them.)

Special tokens are added by us, not by the tokenizer, and never read from the text: a literal "[SEP]" is ordinary characters.

Shapes: N texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from retrodb.encode.identity import digest_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHITE_SPACE = " \t\n\r\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
RUNS = re.compile(f"[^{WHITE_SPACE}]+")
# About 150 MB of dictionary when full. It is then emptied, not frozen: corpora change their vocabulary as they go on.
MAX_CACHED_RUNS = 1_000_000
# Longer runs are addresses, base64, or text in a script without spaces: they do not come again.
MAX_RUN_CHARS = 48


@dataclass(frozen=True)
class TokenIds:
    """The token ids of N texts, one after the other, special tokens included."""

    ids: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]  # by size of the vocabulary
    offsets: npt.NDArray[np.int64]  # (N + 1,), text i is ids[offsets[i]:offsets[i + 1]]
    num_truncated: int  # texts of which only the beginning is here

    @property
    def lengths_N(self) -> npt.NDArray[np.int32]:
        return np.diff(self.offsets).astype(np.int32)


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer as a value: cheap to compare, to hash and to send to another process."""

    tokenizer_json: str  # Hugging Face `tokenizer.json` without padding and truncation
    max_length: int  # tokens with the special ones
    max_cached_runs: int = MAX_CACHED_RUNS

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON: the same for differently formatted files."""
        return digest_json(json.loads(self.tokenizer_json))


def tokenize(spec: TokenizerSpec, texts: list[str]) -> TokenIds:
    """Token ids of the texts; in each process a spec's tokenizer and its cache are made once and kept."""
    return _load(spec).encode(texts)


@lru_cache(maxsize=4)
def _load(spec: TokenizerSpec) -> ChunkTokenizer:
    return ChunkTokenizer(spec)


class ChunkTokenizer:
    """Encodes chunk texts as `[CLS] text [SEP]` or whatever the tokenizer's template asks for."""

    def __init__(self, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Tokenizer = Tokenizer.from_str(spec.tokenizer_json)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # sic: "[SEP]" in a text is encoded as text
        # One more than the largest id that the tokenizer can give.
        self.num_ids = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = np.dtype(np.uint16 if self.num_ids <= 1 << 16 else np.uint32)
        before, after = special_ids(self.tokenizer)
        self.num_special = len(before), len(after)
        self.prefix, self.suffix = self._pack(before), self._pack(after)
        self.max_bytes = spec.max_length * self.dtype.itemsize - len(self.prefix) - len(self.suffix)
        self.max_cached_runs = spec.max_cached_runs
        self.is_cached = is_cacheable(json.loads(spec.tokenizer_json))
        self.cache: dict[str, bytes] = {}
        self.lock = Lock()

    def encode(self, texts: list[str]) -> TokenIds:
        """Ids of the texts, special tokens around them, cut off at the maximum length."""
        with self.lock:  # queries may come while passages are encoded
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
        return [self._pack(e.ids) for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_runs(self, texts: list[str]) -> list[bytes]:
        runs = [RUNS.findall(text) for text in texts]
        # Ids are kept as packed bytes, so that putting a text together is one join in C.
        contents = [_join(self.cache, of_text) for of_text in runs]
        unknown = [row for row, content in enumerate(contents) if content is None]
        known = self._learn([runs[row] for row in unknown])
        for row in unknown:
            contents[row] = _join(known, runs[row])
        return cast(list[bytes], contents)

    def _learn(self, runs: list[list[str]]) -> dict[str, bytes]:
        """A dictionary that answers for all these runs: the cache, and beside it the runs too long to be kept."""
        if len(self.cache) > self.max_cached_runs:
            self.cache.clear()
        missing = [run for run in set().union(*runs) if run not in self.cache]
        found = dict(zip(missing, self._encode_plain(missing), strict=True))
        self.cache.update((run, ids) for run, ids in found.items() if len(run) <= MAX_RUN_CHARS)
        long = {run: ids for run, ids in found.items() if len(run) > MAX_RUN_CHARS}
        return self.cache | long if long else self.cache

    def _pack(self, ids: Iterable[int]) -> bytes:
        return np.array(ids, self.dtype).tobytes()


def _join(known: dict[str, bytes], runs: list[str]) -> bytes | None:
    """The ids of all runs; None if one is not known."""
    try:
        return b"".join(map(known.__getitem__, runs))
    except KeyError:
        return None


def special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's template puts before and after one text."""
    framed = tokenizer.encode("a")
    is_text = [index for index, special in enumerate(framed.special_tokens_mask) if not special]
    return framed.ids[: is_text[0]], framed.ids[is_text[-1] + 1 :]


def is_cacheable(record: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` describes a tokenizer that treats runs between white space one by one.

    BERT's does. Added tokens that are not special would still be searched for in the text, across white space.
    """
    kinds = tuple((record.get(part) or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer"))
    return kinds == ("WordPiece", "BertNormalizer", "BertPreTokenizer") and all(
        token["special"] for token in record["added_tokens"]
    )
