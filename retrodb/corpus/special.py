"""Token ids that stand for no text: what trainers' formats put where nothing is.

Special tokens are stored nowhere in a database, so a token id of one can never be text.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>")


@dataclass(frozen=True)
class SpecialIds:
    """The ids of a tokenizer that end a document and fill up a chunk."""

    end: int  # the first id outside the vocabulary, where the tokenizer has no such token
    pad: int  # `end` where it has none of its own


def special_ids(tokenizer: bytes, vocab_size: int) -> SpecialIds:
    """The special ids of a database's tokenizer file."""
    added = _special_tokens(tokenizer)
    end = next((added[name] for name in END_TOKENS if name in added), vocab_size)
    return SpecialIds(end, next((added[name] for name in PAD_TOKENS if name in added), end))


def all_special_ids(tokenizer: bytes) -> set[int]:
    """The ids of a tokenizer file that stand for no text."""
    return set(_special_tokens(tokenizer).values())


def _special_tokens(tokenizer: bytes) -> dict[str, int]:
    added = orjson.loads(tokenizer).get("added_tokens") or []
    return {token["content"]: int(token["id"]) for token in added if token.get("special")}
