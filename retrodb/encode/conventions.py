"""What a model folder says about itself: pooling, normalisation, prefixes, maximum length, metric.

They are read from the files that sentence-transformers writes (old and new forms) and from nowhere else, least of all from the
model's name. A folder without them is pooled as RETRO did it: the mean over all tokens, not normalised, squared L2.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from retrodb.encode.identity import Metric, Pooling, PoolingSpan, digest_json
from retrodb.errors import InputError, UsageError

POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
CHOICES = {"pooling": get_args(Pooling), "pooling_span": get_args(PoolingSpan), "metric": get_args(Metric)}
METRICS: dict[str, Metric] = {"dot": "inner_product", "cosine": "inner_product", "euclidean": "squared_l2"}
# Names that prompts go by in models of this kind; the first one present counts.
QUERY_PROMPTS = ("query", "question", "search_query")
PASSAGE_PROMPTS = ("passage", "document", "search_document", "corpus")
# Settings of a config.json that change nothing in what the model computes.
COSMETIC = {
    "_name_or_path", "architectures", "attention_probs_dropout_prob", "attention_dropout", "classifier_dropout", "dropout",
    "dtype", "gradient_checkpointing", "hidden_dropout_prob", "id2label", "initializer_range", "label2id", "model_max_length",
    "qa_dropout", "seq_classif_dropout", "tie_weights_", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "use_cache", "_attn_implementation_autoset", "attn_implementation",
}  # fmt: skip
SAFETENSORS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Conventions:
    """How a model's token vectors become one vector of a text, and what is put before the text."""

    pooling: Pooling = "mean"
    pooling_span: PoolingSpan = "all"
    normalise: bool = False
    query_prefix: str = ""
    passage_prefix: str = ""
    metric: Metric = "squared_l2"
    max_length: int | None = None  # tokens; None is what the positions allow


@dataclass(frozen=True)
class Overrides:
    """Conventions that the user sets; None leaves the model's own."""

    pooling: Pooling | None = None
    pooling_span: PoolingSpan | None = None
    normalise: bool | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    metric: Metric | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise UsageError(f"unknown {name} '{value}'", remedy=f"Use one of {', '.join(choices)}.")

    def apply(self, conventions: Conventions) -> Conventions:
        """The conventions with what is set here; the metric follows the normalisation unless it is set, too."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if "normalise" in given and "metric" not in given:
            given["metric"] = "inner_product" if given["normalise"] else "squared_l2"
        return replace(conventions, **given)


# Borgeaud et al. 2022, section 2.2: "BERT embeddings averaged over time", squared L2.
RETRO = Overrides("mean", "all", normalise=False, query_prefix="", passage_prefix="", metric="squared_l2")


def read_conventions(folder: Path) -> Conventions:
    """The conventions of a model folder.

    Raises:
        InputError: it asks for something that retrodb cannot do, such as a Dense layer after the pooling.
    """
    config = read_json(folder / "config.json")
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    found = Conventions(max_length=_max_length(folder))
    if config.get("model_type") == "dpr":  # its vector is the first token's, Karpukhin et al. 2020
        found = replace(found, pooling="cls", metric="inner_product")
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            found = replace(found, pooling=_pooling(folder / module["path"] / "config.json"))
        elif kind == "Normalize":
            found = replace(found, normalise=True, metric="inner_product")
        elif kind != "Transformer":
            raise InputError(
                f"the model has a module '{kind}' after the pooling, which retrodb does not compute",
                where=str(folder / "modules.json"),
                remedy="Use a model of Transformer, Pooling and Normalize.",
            )
    return _with_prompts(folder, found)


def _pooling(path: Path) -> Pooling:
    config = read_json(path)
    new = config.get("pooling_mode")
    modes = [new] if isinstance(new, str) else list(new or [])
    modes = modes or [name for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise InputError(
            f"the pooling '{' + '.join(map(str, modes))}' is not one that retrodb computes",
            where=str(path),
            remedy="Use a model with one of mean, cls, max, mean_sqrt_len_tokens.",
        )
    if config.get("include_prompt") is False:
        raise InputError(
            "the pooling leaves out the prompt, which retrodb does not compute",
            where=str(path),
            remedy="Use a model that pools over its prompt as well.",
        )
    return POOLINGS[modes[0]]


def _with_prompts(folder: Path, found: Conventions) -> Conventions:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return found
    config = read_json(path)
    prompts = config.get("prompts") or {}
    default = prompts.get(config.get("default_prompt_name"), "")
    similarity = config.get("similarity_fn_name")
    return replace(
        found,
        query_prefix=next((prompts[name] for name in QUERY_PROMPTS if name in prompts), default),
        passage_prefix=next((prompts[name] for name in PASSAGE_PROMPTS if name in prompts), default),
        metric=METRICS.get(similarity, found.metric),
        normalise=found.normalise or similarity == "cosine",  # a cosine is the inner product of unit vectors
    )


def _max_length(folder: Path) -> int | None:
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file() and (value := read_json(folder / name).get(key)):
            return int(value)  # transformers writes 10^30 for "no limit"; positions limit it then
    return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in a fixed order.

    Raises:
        InputError: there are none; if there is a pickle instead, the error names the conversion.
    """
    if (folder / SAFETENSORS_INDEX).is_file():
        names = sorted(set(read_json(folder / SAFETENSORS_INDEX)["weight_map"].values()))
        files = [folder / Path(name).name for name in names]
    else:
        files = [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    if any(folder.glob("*.bin")):
        convert = f"from transformers import AutoModel as M; M.from_pretrained('{folder}').save_pretrained('{folder}')"
        raise InputError(
            "the weights are a Python pickle, which can run code when it is read",
            where=str(folder),
            remedy=f'If you trust their origin, convert them: python -c "{convert}"',
        )
    raise InputError(
        f"the model folder has no weights ({', '.join(missing)})", where=str(folder), remedy="Download the model whole."
    )


def digest_weights(files: list[Path]) -> str:
    """SHA-256 over the weights: of the file, or of the files' digests one after the other."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def digest_config(config: dict[str, Any]) -> str:
    """SHA-256 of the settings that change what a model computes."""
    return digest_json({name: value for name, value in config.items() if name not in COSMETIC})


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises InputError where it is missing or is no JSON."""
    try:
        return cast(Any, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError("the file is not there", where=str(path), remedy="Is this a model folder?") from error
    except ValueError as error:
        raise InputError(f"not valid JSON ({error})", where=str(path), remedy="Download the model again.") from error
