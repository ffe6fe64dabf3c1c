"""The conventions of a model: pooling, normalisation, prefixes, maximum length, metric.

They are only read from the files that sentence-transformers writes (old and new forms), never from the name of the model. A
model without these files is pooled as in RETRO: the mean over all tokens, not normalised, squared L2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from retrodb.encode.identity import Pooling, PoolingSpan
from retrodb.encode.model_folder import read_json_value, read_model_json
from retrodb.errors import InputError, UsageError
from retrodb.format.entries import Metric

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
# Names of prompts in models of this kind. The first one that a model has is used.
QUERY_PROMPTS = ("query", "question", "search_query")
PASSAGE_PROMPTS = ("passage", "document", "search_document", "corpus")


@dataclass(frozen=True)
class Conventions:
    """How the token vectors of a model become one vector of a text, and the prefixes of texts."""

    pooling: Pooling = "mean"
    pooling_span: PoolingSpan = "all"
    normalise: bool = False
    query_prefix: str = ""
    passage_prefix: str = ""
    metric: Metric = "squared_l2"
    max_length: int | None = None  # tokens; None: the number of positions of the model


@dataclass(frozen=True)
class Overrides:
    """Conventions that the user sets. None keeps that of the model."""

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
        """The conventions with these changes. The metric follows from the normalisation unless it is also set."""
        changes = {name: value for name, value in vars(self).items() if value is not None}
        if "normalise" in changes and "metric" not in changes:
            changes["metric"] = "inner_product" if changes["normalise"] else "squared_l2"
        return replace(conventions, **changes)


# Borgeaud et al. 2022, section 2.2: "BERT embeddings averaged over time", squared L2.
RETRO = Overrides("mean", "all", normalise=False, query_prefix="", passage_prefix="", metric="squared_l2")


def read_conventions(folder: Path) -> Conventions:
    """The conventions of a model folder.

    Raises:
        InputError: the model has something that retrodb cannot compute, such as a Dense layer after the pooling.
    """
    config = read_model_json(folder / "config.json")
    modules = read_json_value(folder / "modules.json") if (folder / "modules.json").is_file() else []
    conventions = Conventions(max_length=_max_length(folder))
    if config.get("model_type") == "dpr":  # its vector is that of the first token, Karpukhin et al. 2020
        conventions = replace(conventions, pooling="cls", metric="inner_product")
    for module in cast("Sequence[Mapping[str, str]]", modules):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            conventions = replace(conventions, pooling=_pooling(folder / module["path"] / "config.json"))
        elif kind == "Normalize":
            conventions = replace(conventions, normalise=True, metric="inner_product")
        elif kind != "Transformer":
            raise InputError(
                f"the model has a module '{kind}' after the pooling, which retrodb cannot compute",
                where=str(folder / "modules.json"),
                remedy="Use a model that has only Transformer, Pooling and Normalize.",
            )
    return _with_prompts(folder, conventions)


def _pooling(path: Path) -> Pooling:
    config = read_model_json(path)
    mode = config.get("pooling_mode")  # the new form: one name or several
    modes = [mode] if isinstance(mode, str) else list(cast("Sequence[str]", mode or ()))
    modes = modes or [name for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise InputError(
            f"retrodb cannot compute the pooling '{' + '.join(map(str, modes))}'",
            where=str(path),
            remedy="Use a model with one of mean, cls, max, mean_sqrt_len_tokens.",
        )
    if config.get("include_prompt") is False:
        raise InputError(
            "the pooling leaves out the prompt, which retrodb cannot compute",
            where=str(path),
            remedy="Use a model whose pooling includes the prompt.",
        )
    return POOLINGS[modes[0]]


def _with_prompts(folder: Path, conventions: Conventions) -> Conventions:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return conventions
    config = read_model_json(path)
    prompts = cast("Mapping[str, str]", config.get("prompts") or {})
    default = prompts.get(cast("str", config.get("default_prompt_name")), "")
    similarity = cast("str", config.get("similarity_fn_name"))
    return replace(
        conventions,
        query_prefix=next((prompts[name] for name in QUERY_PROMPTS if name in prompts), default),
        passage_prefix=next((prompts[name] for name in PASSAGE_PROMPTS if name in prompts), default),
        metric=METRICS.get(similarity, conventions.metric),
        normalise=conventions.normalise or similarity == "cosine",  # the inner product of unit vectors
    )


def _max_length(folder: Path) -> int | None:
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file() and (value := read_model_json(folder / name).get(key)):
            return int(cast("int", value))  # transformers writes 10^30 for "no limit"; then the positions limit it
    return None
