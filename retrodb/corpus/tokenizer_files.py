"""Loads a tokenizer from a file, a folder or a hub name, in any of its file formats."""

from __future__ import annotations

import os
from pathlib import Path

from retrodb.corpus.lm_tokenizer import SAMPLE, Tokenizer, read_spec
from retrodb.corpus.sentencepiece_model import spec_of_sentencepiece
from retrodb.corpus.tokenizer_checks import bytes_of_token, native_errors
from retrodb.corpus.tokenizer_classes import (
    declared_class,
    is_file_of_class,
    read_object,
    read_object_if_exists,
    spec_of_class,
    text_parts,
)
from retrodb.corpus.tokenizer_json import AddedTokenJson, PreTokenizerJson, TokenizerJson
from retrodb.errors import InputError

MERGE_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
# The SentencePiece models of the fairseq family (XLM-R, mBART, CamemBERT), whose ids are not those of the file.
FAIRSEQ_FILE = "sentencepiece.bpe.model"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", *SENTENCEPIECE_FILES, *sum(MERGE_FILES, ()))
TOKENIZER_HUB_FILES = [
    *TOKENIZER_FILES,
    "*.model",
    "*.spm",
    "added_tokens.json",
    "config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
]
END_OF_TEXT = "<|endoftext|>"


def resolve_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a file, a folder, or a name on the Hugging Face hub.

    A file is a `tokenizers` JSON or a SentencePiece `.model`, and is used as it is. A folder whose `tokenizer_config.json` or
    `config.json` names a class is read as `AutoTokenizer` of transformers reads it. Of another folder the first of these
    files is used: `tokenizer.json`; `encoder.json` with `vocab.bpe`, or `vocab.json` with `merges.txt` (the byte-level BPE
    of GPT-2); a SentencePiece model; `vocab.txt` (the WordPiece of BERT).

    Raises:
        InputError: there is no tokenizer; the message lists the files that were looked for. Or it cannot be used.
        MissingDependency: it is a SentencePiece model, and a package that reads it is not installed.
    """
    if os.path.isdir(name):
        return _tokenizer_of(Path(name))
    if os.path.isfile(name):
        is_sentencepiece = Path(name).suffix == ".model"
        return Tokenizer(spec_of_sentencepiece(Path(name))) if is_sentencepiece else Tokenizer.load(name)
    return _tokenizer_of(_from_hub(str(name)))


def _tokenizer_of(folder: Path) -> Tokenizer:
    spec = spec_of_folder(folder)
    try:
        return Tokenizer(spec)
    except InputError as error:
        raise InputError(error.what, where=error.where or str(folder), remedy=error.remedy) from error


def spec_of_folder(folder: Path, *, with_template: bool = False) -> TokenizerJson:
    """The tokenizer file of a folder. A `tokenizer.json` is kept as it is if its class gives no other ids.

    Args:
        with_template: the special tokens around a text must also be those of the class.

    Raises:
        InputError, MissingDependency: as `resolve_tokenizer`.
    """
    has_class = declared_class(folder) is not None
    is_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES) or any(folder.glob("*.model"))
    if not has_class or not (is_tokenizer or any(folder.glob("*.spm"))):
        return _spec_of_files(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        with native_errors("not a usable tokenizer", where=str(file)):  # nothing has checked the file yet
            if is_file_of_class(folder, plain := read_spec(file)):
                return plain
    spec = spec_of_class(folder, SAMPLE)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES if not name.endswith(".model")):
        return spec
    try:
        plain = _spec_of_files(folder)
        parts, parts_of_class = (text_parts(each, with_template=with_template) for each in (plain, spec))
        return plain if parts == parts_of_class else spec
    except InputError:  # the files need their class
        return spec


def _spec_of_files(folder: Path) -> TokenizerJson:
    """The tokenizer file of a folder that names no class."""
    if (folder / "tokenizer.json").is_file():
        return read_spec(folder / "tokenizer.json")
    for vocab_name, merges_name in MERGE_FILES:
        if (folder / vocab_name).is_file() and (folder / merges_name).is_file():
            return _spec_of_merges(folder / vocab_name, folder / merges_name)
    for model_name in SENTENCEPIECE_FILES:
        if (folder / model_name).is_file():
            return spec_of_sentencepiece(folder / model_name)
    if (folder / FAIRSEQ_FILE).is_file():
        raise InputError(
            f"the ids of {FAIRSEQ_FILE} depend on the tokenizer class, which this folder does not name",
            where=str(folder),
            remedy="Add the tokenizer_config.json of the model, or name the file itself for the ids of SentencePiece.",
        )
    if (folder / "vocab.txt").is_file():
        return _spec_of_wordpiece(folder)
    looked_for = ", ".join(TOKENIZER_FILES)
    raise InputError(f"no tokenizer in this folder (looked for {looked_for})", where=str(folder), remedy=_REMEDY)


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
    vocab = {token: number for token, number in read_object(vocab_file).items() if isinstance(number, int)}
    merges = [line.split(" ") for line in _read_lines(merges_file) if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise InputError("a line is not a pair of tokens", where=str(merges_file), remedy="Download the file again.")
    if any(bytes_of_token(left + right) is None or right.endswith("</w>") for left, right in merges):
        raise InputError(
            "the merges are not those of a byte-level BPE, and the folder names no tokenizer class",
            where=str(merges_file),
            remedy="Add the tokenizer_config.json of the model, with its tokenizer_class.",
        )
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
    vocab = {token: number for number, token in enumerate(_read_lines(folder / "vocab.txt")) if token}
    config = read_object_if_exists(folder / "tokenizer_config.json")
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


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"not UTF-8 text ({error})", where=str(file), remedy="Download the file again.") from error
