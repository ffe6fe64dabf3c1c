"""SentencePiece models, computed by the sentencepiece package itself (the `sentencepiece` extra).

They are not converted to a `tokenizers` model. A converted model gives other ids for text with combining marks, for some
blanks, and for segmentations with equal scores (tried with nmt_nfkc unigram and bpe models). Instead, the
`tokenizer.json` of the database has the `.model` file as base64.

The dummy prefix: most models put a blank before the text ("▁The"). It is put once before each text, never before a chunk;
a key and a value are two texts. The blank covers no byte of the text. A first token that is only the blank covers nothing.
A first token that begins with it covers only the bytes of the text. `decode` removes the leading blank.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypedDict, cast

import numpy as np

from retrodb.corpus.tokenizer_json import TokenizerJson
from retrodb.errors import InputError, MissingDependency
from retrodb.format.arrays import AnyArray, Int64Array

MODEL_TYPE = "SentencePiece"


def spec_of_sentencepiece(path: Path) -> TokenizerJson:
    """The tokenizer file of a database for a `.model` file.

    Raises:
        InputError: it is not a SentencePiece model.
        MissingDependency: sentencepiece is not installed.
    """
    content = path.read_bytes()
    try:
        _processor(content)
    except RuntimeError as error:
        raise InputError(
            f"not a SentencePiece model ({error})", where=str(path), remedy="Download it again."
        ) from error
    return {"version": "1.0", "model": {"type": MODEL_TYPE, "proto": base64.b64encode(content).decode()}}


class SentencePieceModel:
    """A SentencePiece model that also gives the positions of its tokens."""

    def __init__(self, spec: TokenizerJson) -> None:
        self._processor = _processor(base64.b64decode(spec["model"]["proto"]))
        self.vocab_size: int = self._processor.get_piece_size()
        # Byte value of each "<0xE6>" piece; -1 for other pieces.
        pieces = [self._processor.id_to_piece(n) if self._processor.is_byte(n) else "" for n in range(self.vocab_size)]
        self._byte_V = np.array([int(piece[1:-1], 16) if piece else -1 for piece in pieces])

    def encode(
        self, texts: Sequence[str], num_threads: int, every: int
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, characters [begin, end) of each token) per text. sentencepiece has no way to give only some of them."""
        del every
        encodings = self._processor.encode(list(texts), out_type="offset_mapping", num_threads=num_threads)
        return [(encoding["ids"], encoding["offsets"]) for encoding in encodings]

    def spread_bytes(self, tokens_T: AnyArray, spans_T2: Int64Array) -> Int64Array:
        """The spans, changed so that each byte token covers its whole character.

        sentencepiece gives the character to its last byte token only.
        """
        byte_T = self._byte_V[tokens_T]
        is_followed_T = np.append((byte_T[1:] & 0xC0) == 0x80, False) & (byte_T >= 0)
        is_followed_T[:-1] &= byte_T[1:] >= 0
        last_T = np.where(is_followed_T, len(tokens_T), np.arange(len(tokens_T)))
        last_T = np.minimum.accumulate(last_T[::-1])[::-1]  # the last token of the same character
        return np.stack((spans_T2[:, 0], spans_T2[last_T, 1]), axis=1)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens."""
        return str(self._processor.decode(list(tokens)))

    def id_of(self, token: str) -> int | None:
        """The id of a token, if the vocabulary has it."""
        token_id = int(self._processor.piece_to_id(token))
        return token_id if self._processor.id_to_piece(token_id) == token else None


class _Encoding(TypedDict):
    ids: list[int]
    offsets: list[tuple[int, int]]


class _Processor(Protocol):
    """The part of `sentencepiece.SentencePieceProcessor` that is used here."""

    def get_piece_size(self) -> int: ...
    def id_to_piece(self, token_id: int) -> str: ...
    def piece_to_id(self, piece: str) -> int: ...
    def is_byte(self, token_id: int) -> bool: ...
    def encode(self, texts: list[str], *, out_type: str, num_threads: int) -> list[_Encoding]: ...
    def decode(self, tokens: list[int]) -> str: ...


def _processor(content: bytes) -> _Processor:
    try:
        import sentencepiece
    except ImportError as error:
        remedy = "Install it with: pip install 'retrodb[sentencepiece]'"
        raise MissingDependency("a SentencePiece model needs the package sentencepiece", remedy=remedy) from error
    return cast("_Processor", sentencepiece.SentencePieceProcessor(model_proto=content))
