"""The tokenizer that a name, file or folder means, whatever form it comes in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from retrodb.corpus.sentencepiece_model import spec_of_sentencepiece
from retrodb.corpus.tokenizer import Tokenizer
from retrodb.errors import InputError

MERGE_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
HUB_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", *SENTENCEPIECE_FILES, *sum(MERGE_FILES, ())]
END_OF_TEXT = "<|endoftext|>"


def resolve_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a file, a folder or a name on the Hugging Face hub.

    A file is a `tokenizers` JSON, or a SentencePiece `.model`. In a folder the first of these counts: `tokenizer.json`;
    `encoder.json` with `vocab.bpe`, or `vocab.json` with `merges.txt` (GPT-2's byte-level BPE); a SentencePiece model;
    `vocab.txt` (BERT's WordPiece).

    Raises:
        InputError: there is none; the message says what was looked at.
        MissingDependency: a SentencePiece model, without the extra.
    """
    if os.path.isdir(name):
        return _of_folder(Path(name))
    if os.path.isfile(name):
        return Tokenizer(spec_of_sentencepiece(Path(name))) if Path(name).suffix == ".model" else Tokenizer.load(name)
    return _of_folder(_from_hub(str(name)))


def _of_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder)
    for vocab_name, merges_name in MERGE_FILES:
        if (folder / vocab_name).is_file() and (folder / merges_name).is_file():
            return Tokenizer(_spec_of_merges(folder / vocab_name, folder / merges_name))
    for model_name in SENTENCEPIECE_FILES:
        if (folder / model_name).is_file():
            return Tokenizer(spec_of_sentencepiece(folder / model_name))
    if (folder / "vocab.txt").is_file():
        return Tokenizer(_spec_of_wordpiece(folder))
    looked = ", ".join(name for name in HUB_FILES if name != "tokenizer_config.json")
    raise InputError(f"no tokenizer in this folder (looked for {looked})", where=str(folder), remedy=_REMEDY)


_REMEDY = "Name a tokenizer file or folder, or train one with 'retrodb tokenizer train'."


def _from_hub(name: str) -> Path:
    """A hub repository's tokenizer files, from the local cache or fetched."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        what = f"no such file or folder, and not to be had from the Hugging Face hub ({type(error).__name__})"
        raise InputError(what, where=name, remedy=_REMEDY) from error


def _spec_of_merges(vocab_file: Path, merges_file: Path) -> dict[str, Any]:
    """GPT-2's two files: a vocabulary, and merges, one a line, below a version line."""
    vocab = _parsed(vocab_file)
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise InputError("a line that is no pair of tokens", where=str(merges_file), remedy="Fetch the file again.")
    special = [END_OF_TEXT] if END_OF_TEXT in vocab else []
    return byte_bpe_spec(vocab, merges, special)


def byte_bpe_spec(vocab: dict[str, int], merges: list[list[str]], special: list[str]) -> dict[str, Any]:
    """A `tokenizers` file of a byte-level BPE over GPT-2's words."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [_special(vocab[token], token) for token in special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _spec_of_wordpiece(folder: Path) -> dict[str, Any]:
    """BERT's `vocab.txt`, one token a line.

    Text is lower-cased as `tokenizer_config.json` says; without it, when no token of the vocabulary has an upper-case
    letter (names in square brackets aside).
    """
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocab = {token: number for number, token in enumerate(lines) if token}
    config = _parsed(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    special = [token for token in vocab if token.startswith("[") and token.endswith("]") and len(token) > 2]
    is_uncased = all(token == token.lower() for token in vocab.keys() - special)
    lowercase = bool(config.get("do_lower_case", is_uncased))
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": lowercase}
    model = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab}
    return {
        "version": "1.0",
        "added_tokens": [_special(vocab[token], token) for token in _BERT_SPECIAL if token in vocab],
        "normalizer": {"type": "BertNormalizer", **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {"type": "WordPiece", **model},
    }


_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _special(number: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def _parsed(file: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InputError(f"not JSON ({error})", where=str(file), remedy="Fetch the file again.") from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=str(file), remedy="Fetch the file again.")
    return value
