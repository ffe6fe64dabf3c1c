"""Tokenizer folders that name a class, read as `AutoTokenizer` of transformers reads them.

The same files mean different ids in different classes: `sentencepiece.bpe.model` is shifted by one for XLM-R and by four for
CamemBERT, and `vocab.json` with `merges.txt` is bytes for GPT-2 and characters with "</w>" for OpenAI-GPT and CLIP. So the class
decides, not the names of the files. The class is `tokenizer_class` of `tokenizer_config.json`, or what `config.json` says.

Only classes that compute with the `tokenizers` library can be stored. Classes in Python, and code of the model, are refused.
The result is compared with the class itself on a sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

import orjson

from retrodb.corpus.tokenizer_checks import has_all_bytes, native_errors, pre_tokenizer_steps, without_randomness
from retrodb.corpus.tokenizer_json import TokenizerJson
from retrodb.errors import InputError, MissingDependency

# transformers takes these for every class.
FILES_OF_ALL_CLASSES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model")
ENDINGS_OF_SENTENCEPIECE = (".model", ".spm", ".vocab")


def declared_class(folder: Path) -> str | None:
    """The tokenizer class that a folder names, or None.

    The model type of `config.json` names a class only if there is no `tokenizer.json`, which is complete by itself.

    Raises:
        InputError: a configuration file is not a JSON object.
    """
    tokenizer_config = read_object_if_exists(folder / "tokenizer_config.json")
    config = read_object_if_exists(folder / "config.json")
    for value in (tokenizer_config.get("tokenizer_class"), config.get("tokenizer_class")):
        if isinstance(value, str) and value:
            return value
    is_complete = (folder / "tokenizer.json").is_file()
    return f"of model type '{config['model_type']}'" if config.get("model_type") and not is_complete else None


def spec_of_class(folder: Path, sample: Sequence[str]) -> TokenizerJson:
    """The tokenizer file of a folder that names a class.

    Args:
        sample: texts for which the file and the class must give the same ids.

    Raises:
        InputError: transformers cannot load it, it computes in Python, or it computes more than its file.
        MissingDependency: a package is missing that transformers needs for its files.
    """
    name = declared_class(folder)
    _require_packages(folder, name)
    tokenizer = _load(folder, name)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise _refused(folder, f"the tokenizer class {type(tokenizer).__name__} computes in Python, not in a file")
    _require_vocabulary_files(folder, tokenizer)
    spec = cast("TokenizerJson", orjson.loads(backend.to_str()))
    _require_same_ids(folder, spec, tokenizer, sample)
    return spec


def is_file_of_class(folder: Path, spec: TokenizerJson) -> bool:
    """Whether a `tokenizer.json` is certainly that of its class, so that transformers, which takes seconds, is not needed.

    Two classes are known: the one that takes every file as it is, and that of BERT.
    """
    config, name = read_object_if_exists(folder / "tokenizer_config.json"), declared_class(folder)
    contents = {token["content"] for token in spec.get("added_tokens") or []}
    added = config.get("added_tokens_decoder") or {}
    special = [config.get(f"{kind}_token") for kind in ("unk", "sep", "pad", "cls", "mask", "bos", "eos")]
    named = [
        *(added.values() if isinstance(added, dict) else ()),
        *special,
        *_as_list(config.get("extra_special_tokens")),
    ]
    named += _as_list(config.get("additional_special_tokens"))
    texts = {token.get("content") if isinstance(token, dict) else token for token in named if token is not None}
    if (folder / "added_tokens.json").exists() or "auto_map" in config or not texts <= contents:
        return False
    if name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return True
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }
    model = {key: value for key, value in spec["model"].items() if key not in ("type", "vocab")}
    settings = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return (
        name in ("BertTokenizer", "BertTokenizerFast")
        and bool(spec.get("post_processor"))
        and {"[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"} <= contents
        and all(token.get("special") for token in spec.get("added_tokens") or [])
        and spec.get("normalizer") == normalizer
        and spec.get("pre_tokenizer") == {"type": "BertPreTokenizer"}
        and spec["model"].get("type") in (None, "WordPiece")
        and model == settings
    )


def text_parts(spec: TokenizerJson, *, with_template: bool) -> bytes:
    """The parts of a file that the ids of a text depend on, in one canonical form.

    Args:
        with_template: with the special tokens around a text.
    """
    import tokenizers

    with native_errors("not a usable tokenizer", remedy="Name a `tokenizers` JSON file."):
        loaded = tokenizers.Tokenizer.from_str(orjson.dumps(without_randomness(spec)).decode())
        canonical = orjson.loads(loaded.to_str())
        template = loaded.encode("a") if with_template else None
    model = {name: value or None for name, value in canonical["model"].items()}  # "" and null mean the same
    if has_all_bytes(model.get("vocab") or {}):  # then no character is unknown
        model |= {"unk_token": None, "fuse_unk": None}
    # A special token is never found in a text, so only its id matters.
    added = [
        [token["id"], token["content"]] if token["special"] else token
        for token in sorted(canonical["added_tokens"], key=lambda token: int(token["id"]))
    ]
    steps = [{**step, "trim_offsets": None} for step in pre_tokenizer_steps(canonical)]  # for post-processors only
    parts = [canonical["normalizer"], steps, added, model, template and [template.ids, template.type_ids]]
    return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)


class _ClassTokenizer(Protocol):
    """The part of a tokenizer of transformers that is used here."""

    vocab_files_names: dict[str, str]

    def __call__(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> dict[str, list[int]]: ...


def _load(folder: Path, name: str | None) -> _ClassTokenizer:
    with (
        _quiet_transformers(),
        native_errors(
            f"transformers cannot load the tokenizer class {name}", where=str(folder), remedy=_remedy(folder)
        ),
    ):
        from transformers import AutoTokenizer

        return cast(
            "_ClassTokenizer", AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )


def _require_packages(folder: Path, name: str | None) -> None:
    if (folder / "tokenizer.json").is_file():
        return
    has_sentencepiece = any(path.name.endswith(ENDINGS_OF_SENTENCEPIECE) for path in folder.iterdir())
    missing = [package for package in ("sentencepiece", "google.protobuf") if not _is_installed(package)]
    if has_sentencepiece and missing:
        packages = " and ".join(package.removeprefix("google.") for package in missing)
        raise MissingDependency(
            f"transformers needs {packages} to read the SentencePiece model of the tokenizer class {name}",
            where=str(folder),
            remedy="Install it with: pip install 'retrodb[sentencepiece]'. If the ids of the model file itself are the "
            "right ones, name that file.",
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package `google` itself
        return False


def _require_vocabulary_files(folder: Path, tokenizer: _ClassTokenizer) -> None:
    """Without its files, a class of transformers 5 makes a vocabulary of its special tokens only."""
    names = [name for key, name in tokenizer.vocab_files_names.items() if key != "tokenizer_file"]
    has_all = bool(names) and all((folder / name).is_file() for name in names)
    if not has_all and not any((folder / name).is_file() for name in FILES_OF_ALL_CLASSES):
        wanted = " and ".join(names) or "tokenizer.json"
        raise _refused(folder, f"the tokenizer class {type(tokenizer).__name__} needs {wanted}, which is not there")


def _require_same_ids(folder: Path, spec: TokenizerJson, tokenizer: _ClassTokenizer, sample: Sequence[str]) -> None:
    import tokenizers

    what = f"the tokenizer class {type(tokenizer).__name__} fails at a text"
    with native_errors(what, where=str(folder)):
        stored = tokenizers.Tokenizer.from_str(orjson.dumps(without_randomness(spec)).decode())
        stored.encode_special_tokens = True
        is_random = bool(spec["model"].get("dropout"))
        for text in () if is_random else sample:
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if stored.encode(text, add_special_tokens=False).ids != list(ids):
                what = f"the tokenizer class {type(tokenizer).__name__} computes more than its tokenizer.json"
                raise _refused(folder, what)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the warnings of transformers, which are about training and chat."""
    import logging as levels

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(levels.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _as_list(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []


def _refused(folder: Path, what: str) -> InputError:
    return InputError(what, where=str(folder), remedy=_remedy(folder))


def _remedy(folder: Path) -> str:
    if (folder / "tokenizer.json").is_file():
        return f"If its tokenizer.json is what you want, name that file: {folder / 'tokenizer.json'}"
    return "Save it as a tokenizer.json with the transformers library, and name that file."


def read_object_if_exists(file: Path) -> dict[str, object]:
    """The JSON object of a file, or an empty one if there is no such file.

    Raises:
        InputError: it is not a JSON object, or cannot be read.
    """
    return read_object(file) if os.path.lexists(file) else {}


def read_object(file: Path) -> dict[str, object]:
    """The JSON object of a file. Raises InputError if it is not one, or cannot be read."""
    try:
        value = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"not valid JSON ({error})", where=str(file), remedy="Download the file again.") from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=str(file), remedy="Download the file again.")
    return value
