"""What must be true of a `tokenizers` file before it is used, and which files are lossless.

Lossless: the bytes of the tokens of a text, one after the other, are the text. This is proved for byte-level BPE if

1. no step changes or removes characters before the bytes are taken: there is no normalizer, and the steps that cut words
   only cut (a `Split` whose behaviour is "Removed" does not);
2. the vocabulary has all 256 bytes, and no two tokens have the same id;
3. no ordinary added token takes blanks next to it (`lstrip`, `rstrip`), and if the model has a token of the same content,
   both have the same bytes.

The proof rests on what `tokenizers` documents, so a sample is also encoded and decoded (`Tokenizer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from retrodb.corpus.tokenizer_json import PreTokenizerJson, TokenizerJson
from retrodb.errors import InputError, RetroDBError

# Steps that only cut text; `Split` and `Punctuation` unless they remove what they find.
CUTTING_STEPS = ("Digits", "Punctuation", "Split", "UnicodeScripts")
OTHER_TOKENIZER = "Use another tokenizer, or train one with 'retrodb tokenizer train'."


@contextmanager
def native_errors(what: str, *, where: str | None = None, remedy: str = OTHER_TOKENIZER) -> Iterator[None]:
    """Turn every error of a native library into an InputError. A panic of Rust code is not an `Exception`."""
    try:
        yield
    except (RetroDBError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        first_line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(f"{what} ({first_line})", where=where, remedy=remedy) from error


def without_randomness(spec: TokenizerJson) -> TokenizerJson:
    """The file without padding, truncation and dropout. Dropout makes the ids of a text random."""
    spec = {**spec, "padding": None, "truncation": None}
    if spec["model"].get("dropout"):
        spec["model"] = {**spec["model"], "dropout": None}
    return spec


def refuse_crashing_merges(spec: TokenizerJson) -> None:
    """Refuse a file that ends the process when it is loaded.

    `tokenizers` cuts the prefix off the right part of each merge, by its number of characters, without a check.

    Raises:
        InputError: a merge does not have the prefix, or the prefix is not ASCII.
    """
    model = spec["model"]
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not prefix or not isinstance(prefix, str) or not isinstance(merges, list):
        return
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    rights = [pair[-1] if isinstance(pair, list) and pair else None for pair in pairs]
    if not prefix.isascii() or any(not isinstance(right, str) or not right.startswith(prefix) for right in rights):
        raise InputError(
            f"the merges do not have the continuing_subword_prefix {prefix!r} of the model", remedy=OTHER_TOKENIZER
        )


def require_unknown_token(spec: TokenizerJson, vocabulary: Mapping[str, int]) -> None:
    """Refuse a tokenizer that fails at the first word or character that it does not know.

    Raises:
        InputError: the vocabulary is empty, or has no unknown token although the model needs one.
    """
    model = spec["model"]
    kind = model.get("type")
    if not vocabulary:
        raise InputError("the tokenizer has an empty vocabulary", remedy=OTHER_TOKENIZER)
    if kind == "Unigram" and model.get("unk_id") is None and not model.get("byte_fallback"):
        raise InputError("the Unigram tokenizer has no unknown token ('unk_id' is null)", remedy=OTHER_TOKENIZER)
    # Of a model in an older file the type is not written; then the unknown token shows the kind.
    name = model.get("unk_token")
    is_needed = kind in ("WordPiece", "WordLevel") or (name is not None and not has_all_bytes(model.get("vocab") or {}))
    words = model.get("vocab") or {}
    if is_needed and isinstance(words, dict) and name not in words:
        raise InputError(
            f"the vocabulary of the {kind or 'tokenizer'} model does not have its unknown token {name!r}, so the "
            "tokenizer fails at an unknown word",
            remedy=OTHER_TOKENIZER,
        )


def is_lossless_file(spec: TokenizerJson, vocabulary: Mapping[str, int]) -> bool:
    """Whether the conditions of the module docstring are true."""
    model = spec["model"]
    is_plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    if model.get("type") != "BPE" or spec.get("normalizer") is not None or not is_plain:
        return False
    steps = pre_tokenizer_steps(spec)
    is_byte_level = steps[-1].get("type") == "ByteLevel" and not steps[-1].get("add_prefix_space", True)
    if not is_byte_level or not all(_only_cuts(step) for step in steps[:-1]):
        return False
    has_unique_ids = len(set(vocabulary.values())) == len(vocabulary)
    ordinary = [token for token in spec.get("added_tokens") or [] if not token.get("special")]
    return (
        has_unique_ids
        and has_all_bytes(model["vocab"])
        and not any(token.get("lstrip") or token.get("rstrip") for token in ordinary)
        and all(_is_unambiguous(token["content"], model["vocab"]) for token in ordinary)
    )


def pre_tokenizer_steps(spec: TokenizerJson) -> list[PreTokenizerJson]:
    """The steps that cut text into words, without nesting; one empty step if there are none."""
    return list(_flattened(spec.get("pre_tokenizer") or {})) or [{}]


def bytes_of_token(token: str) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary; None if it has other characters."""
    values = byte_values()
    return bytes(values[c] for c in token) if all(c in values for c in token) else None


def has_all_bytes(vocab: Mapping[str, int]) -> bool:
    """Whether a vocabulary has the character of every byte."""
    return isinstance(vocab, dict) and vocab.keys() >= _BYTE_VALUES.keys()


def byte_characters() -> dict[int, str]:
    """Byte value -> its printable character in a byte-level vocabulary (the table of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + n) for n, value in enumerate(others)}


def byte_values() -> dict[str, int]:
    """The inverse of `byte_characters`."""
    return _BYTE_VALUES


_BYTE_VALUES = {character: value for value, character in byte_characters().items()}


def _flattened(step: PreTokenizerJson) -> Iterator[PreTokenizerJson]:
    if step.get("type") == "Sequence":
        for part in step.get("pretokenizers") or []:
            yield from _flattened(part)
    elif step:
        yield step


def _only_cuts(step: PreTokenizerJson) -> bool:
    return step.get("type") in CUTTING_STEPS and step.get("behavior") != "Removed"


def _is_unambiguous(content: str, vocab: Mapping[str, int]) -> bool:
    """Whether an added token has the bytes of its text, if the model has a token of the same name."""
    return content not in vocab or bytes_of_token(content) in (None, content.encode())
