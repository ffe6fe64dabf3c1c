"""Loads a tokenizer from a file, a folder or a hub name, in any of its file formats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import orjson

from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.sentencepiece_model import spec_of_sentencepiece
from retrodb.corpus.tokenizer_json import AddedTokenJson, PreTokenizerJson, TokenizerJson
from retrodb.errors import InputError

MERGE_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_HUB_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    *SENTENCEPIECE_FILES,
    *sum(MERGE_FILES, ()),
]
END_OF_TEXT = "<|endoftext|>"


def resolve_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a file, a folder, or a name on the Hugging Face hub.

    A file is a `tokenizers` JSON or a SentencePiece `.model`. Of a folder the first of these files is used:
    `tokenizer.json`; `encoder.json` with `vocab.bpe`, or `vocab.json` with `merges.txt` (the byte-level BPE of GPT-2); a
    SentencePiece model; `vocab.txt` (the WordPiece of BERT).

    Raises:
        InputError: there is no tokenizer; the message lists the files that were looked for.
        MissingDependency: it is a SentencePiece model, and sentencepiece is not installed.
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
    names = ", ".join(name for name in TOKENIZER_HUB_FILES if name != "tokenizer_config.json")
    raise InputError(f"no tokenizer in this folder (looked for {names})", where=str(folder), remedy=_REMEDY)


_REMEDY = "Name a tokenizer file or folder, or train one with 'retrodb tokenizer train'."


def _from_hub(name: str) -> Path:
    """The tokenizer files of a hub repository, from the local cache or downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=TOKENIZER_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        what = f"no such file or folder, and the Hugging Face hub does not provide it ({type(error).__name__})"
        raise InputError(what, where=name, remedy=_REMEDY) from error


def _spec_of_merges(vocab_file: Path, merges_file: Path) -> TokenizerJson:
    """The two files of GPT-2: a vocabulary, and the merges, one per line below a version line."""
    vocab = cast("dict[str, int]", _read_object(vocab_file))
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise InputError("a line is not a pair of tokens", where=str(merges_file), remedy="Download the file again.")
    special = [END_OF_TEXT] if END_OF_TEXT in vocab else []
    return byte_bpe_spec(vocab, merges, special)


def byte_bpe_spec(vocab: dict[str, int], merges: list[list[str]], special: list[str]) -> TokenizerJson:
    """A `tokenizers` file of a byte-level BPE over the words of GPT-2."""
    byte_level: PreTokenizerJson = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "added_tokens": [_special_token(vocab[token], token) for token in special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _spec_of_wordpiece(folder: Path) -> TokenizerJson:
    """The `vocab.txt` of BERT, one token per line.

    `tokenizer_config.json` says whether text is lower-cased. Without it, text is lower-cased if no token of the vocabulary
    has an upper-case letter; special tokens, in square brackets, do not count.
    """
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocab = {token: number for number, token in enumerate(lines) if token}
    config = _read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    special = [token for token in vocab if token.startswith("[") and token.endswith("]") and len(token) > 2]
    is_uncased = all(token == token.lower() for token in vocab.keys() - special)
    lowercase = bool(config.get("do_lower_case", is_uncased))
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": lowercase}
    return {
        "version": "1.0",
        "added_tokens": [_special_token(vocab[token], token) for token in _BERT_SPECIAL if token in vocab],
        "normalizer": {"type": "BertNormalizer", **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _special_token(token_id: int, token: str) -> AddedTokenJson:
    return {
        "id": token_id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _read_object(file: Path) -> dict[str, object]:
    try:
        value = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error})", where=str(file), remedy="Download the file again.") from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=str(file), remedy="Download the file again.")
    return value
