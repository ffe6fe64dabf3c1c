"""SentencePiece models, computed by the sentencepiece package itself (the `sentencepiece` extra).

They are not converted to a `tokenizers` model: that gives other ids for text with combining marks, for some blanks, and
where two segmentations score alike (tried on nmt_nfkc unigram and bpe models). The database's `tokenizer.json` holds the
`.model` file as base64 instead.

The dummy prefix: most models put a blank before the text ("▁The"). It is put before each text once, never before a chunk;
a key and a value are two texts. It covers no byte of the text: a first token that is the blank alone covers nothing, and
one that begins with it covers only the text's bytes. `decode` takes the one leading blank away again.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrodb.errors import InputError, MissingDependency

MODEL_TYPE = "SentencePiece"


def spec_of_sentencepiece(path: Path) -> dict[str, Any]:
    """The database's tokenizer file for a `.model` file.

    Raises:
        InputError: not a SentencePiece model.
        MissingDependency: sentencepiece is not installed.
    """
    content = path.read_bytes()
    try:
        _processor(content)
    except RuntimeError as error:
        raise InputError(f"not a SentencePiece model ({error})", where=str(path), remedy="Fetch it again.") from error
    return {"version": "1.0", "model": {"type": MODEL_TYPE, "proto": base64.b64encode(content).decode()}}


class SentencePieceModel:
    """A SentencePiece model that also says where its tokens lie."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._processor = _processor(base64.b64decode(spec["model"]["proto"]))
        self.vocab_size: int = self._processor.get_piece_size()
        # Byte value of each "<0xE6>" piece, -1 for the others.
        pieces = [self._processor.id_to_piece(n) if self._processor.is_byte(n) else "" for n in range(self.vocab_size)]
        self._byte_V = np.array([int(piece[1:-1], 16) if piece else -1 for piece in pieces])

    def encode(
        self, texts: Sequence[str], num_threads: int, every: int
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, characters [begin, end) of each token) per text: sentencepiece gives all or none."""
        del every
        mapped = self._processor.encode(list(texts), out_type="offset_mapping", num_threads=num_threads)
        return [(text["ids"], text["offsets"]) for text in mapped]

    def spread_bytes(self, tokens_T: np.ndarray[Any, Any], spans_T2: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The spans with each byte token covering its whole character, which sentencepiece gives to the last one alone."""
        byte_T = self._byte_V[tokens_T]
        is_followed_T = np.append((byte_T[1:] & 0xC0) == 0x80, False) & (byte_T >= 0)
        is_followed_T[:-1] &= byte_T[1:] >= 0
        last_T = np.where(is_followed_T, len(tokens_T), np.arange(len(tokens_T)))
        last_T = np.minimum.accumulate(last_T[::-1])[::-1]  # of the same character
        return np.stack((spans_T2[:, 0], spans_T2[last_T, 1]), axis=1)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._processor.decode(list(tokens)))

    def id_of(self, token: str) -> int | None:
        number = int(self._processor.piece_to_id(token))
        return number if self._processor.id_to_piece(number) == token else None


def _processor(content: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        remedy = "Install it with: pip install 'retrodb[sentencepiece]'"
        raise MissingDependency("a SentencePiece model needs the package sentencepiece", remedy=remedy) from error
    return sentencepiece.SentencePieceProcessor(model_proto=content)
