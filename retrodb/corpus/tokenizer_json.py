"""The parts of a `tokenizers` JSON file that retrodb reads, with their types."""

from __future__ import annotations

from typing import TypedDict


class SplitPattern(TypedDict, total=False):
    """The pattern of a `Split` step: one of the two."""

    Regex: str
    String: str


class PreTokenizerJson(TypedDict, total=False):
    """How text is cut into words; "Sequence" has several steps."""

    type: str
    pretokenizers: list[PreTokenizerJson]  # of a "Sequence"
    add_prefix_space: bool  # of "ByteLevel"
    trim_offsets: bool  # of "ByteLevel"
    use_regex: bool  # of "ByteLevel"
    pattern: SplitPattern  # of "Split"
    behavior: str  # of "Split"
    invert: bool  # of "Split"


class ModelJson(TypedDict, total=False):
    """How words become tokens."""

    type: str  # "BPE", "WordPiece", ...; "SentencePiece" is ours
    vocab: dict[str, int]  # of BPE and WordPiece
    merges: list[str] | list[list[str]]  # of BPE: pairs as one string ("a b") in older files
    ignore_merges: bool
    dropout: float | None
    continuing_subword_prefix: str | None
    end_of_word_suffix: str | None
    unk_token: str | None
    unk_id: int | None  # of Unigram
    byte_fallback: bool  # of BPE and Unigram
    max_input_chars_per_word: int
    proto: str  # of our "SentencePiece": the model file in base64


class AddedTokenJson(TypedDict, total=False):
    """A token that was added to the vocabulary of the model."""

    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


class TokenizerJson(TypedDict, total=False):
    """A whole file."""

    version: str
    added_tokens: list[AddedTokenJson]
    normalizer: dict[str, object] | None
    pre_tokenizer: PreTokenizerJson | None
    model: ModelJson
    post_processor: dict[str, object] | None
    decoder: dict[str, object] | PreTokenizerJson | None
    padding: dict[str, object] | None
    truncation: dict[str, object] | None
