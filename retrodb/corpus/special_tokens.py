"""Token ids that stand for no text. Export formats use them for padding and for the end of a document.

A database stores no special tokens, so the id of one is never part of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import orjson

from retrodb.corpus.tokenizer_json import TokenizerJson

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>")


@dataclass(frozen=True)
class SpecialIds:
    """The ids of a tokenizer that end a document and pad a chunk."""

    end: int  # the first id above the vocabulary if the tokenizer has no such token
    pad: int  # equal to `end` if the tokenizer has no padding token


def special_ids(tokenizer: bytes, vocab_size: int) -> SpecialIds:
    """The special ids of the tokenizer file of a database."""
    ids = _special_tokens(tokenizer)
    end = next((ids[name] for name in END_TOKENS if name in ids), vocab_size)
    return SpecialIds(end, next((ids[name] for name in PAD_TOKENS if name in ids), end))


def all_special_ids(tokenizer: bytes) -> set[int]:
    """The ids of all special tokens of a tokenizer file."""
    return set(_special_tokens(tokenizer).values())


def _special_tokens(tokenizer: bytes) -> dict[str, int]:
    spec = cast("TokenizerJson", orjson.loads(tokenizer))
    return {token["content"]: int(token["id"]) for token in spec.get("added_tokens") or () if token.get("special")}
