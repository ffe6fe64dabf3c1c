"""Documents of made-up words, and the files that hold them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import orjson

WORDS = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so", "tu") for b in ("ban", "dor", "fel", "gim", "hus")
]


def made_text(seed: int | str, num_words: int) -> str:
    """Random words; different seeds share no 13-gram."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def write_documents(path: Path, documents: Mapping[str, str]) -> Path:
    """JSON Lines of documents by id."""
    path.write_bytes(b"".join(orjson.dumps({"id": i, "text": text}) + b"\n" for i, text in documents.items()))
    return path
