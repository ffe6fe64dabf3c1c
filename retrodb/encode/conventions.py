"""The conventions of a model: pooling, normalisation, prefixes, maximum length, metric.

They are only read from the files that sentence-transformers writes (old and new forms), never from the name of the model. A
model without these files is pooled as in RETRO: the mean over all tokens, not normalised, squared L2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from retrodb.encode.identity import Pooling, PoolingSpan
from retrodb.encode.model_folder import read_model_json
from retrodb.encode.sentence_files import (
    SentenceConfig,
    read_modules,
    read_sentence_config,
    read_transformer_config,
)
from retrodb.errors import InputError, UsageError
from retrodb.format.entries import Metric

CHOICES = {"pooling": get_args(Pooling), "pooling_span": get_args(PoolingSpan), "metric": get_args(Metric)}
METRICS: dict[str, Metric] = {
    "dot": "inner_product",
    "dot_product": "inner_product",
    "cosine": "inner_product",
    "euclidean": "squared_l2",
}
# Names of prompts in models of this kind. The first one that a model has is used; sentence-transformers has the same order.
QUERY_PROMPTS = ("query", "question", "search_query")
PASSAGE_PROMPTS = ("document", "passage", "corpus", "search_document")


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
    lowercase: bool = False  # texts are lower-cased before the tokenizer
    truncate_dim: int | None = None  # only this number of first dimensions is kept
    embedding_dimension: int | None = None  # that the pooling expects; None: it does not say
    transformer: Path | None = None  # the folder of the weights and the tokenizer, in or equal to that of the model


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


def read_conventions(folder: Path, overrides: Overrides | None = None) -> Conventions:
    """The conventions of a model folder, with the changes of the user.

    Raises:
        InputError: the model has something that retrodb cannot compute, such as a Dense layer after the pooling.
    """
    overrides = overrides or Overrides()
    modules, sentence_config = read_modules(folder), read_sentence_config(folder)
    transformer = read_transformer_config(modules.transformer)
    config = read_model_json(modules.transformer / "config.json")
    conventions = Conventions(
        normalise=modules.normalise,
        metric="inner_product" if modules.normalise else "squared_l2",
        max_length=transformer.max_length,
        lowercase=transformer.lowercase,
        truncate_dim=sentence_config.truncate_dim,
        embedding_dimension=modules.embedding_dimension,
        transformer=modules.transformer,
    )
    if modules.pooling is not None:
        conventions = replace(conventions, pooling=modules.pooling)
    elif config.get("model_type") == "dpr":  # its vector is that of the first token, Karpukhin et al. 2020
        conventions = replace(conventions, pooling="cls", metric="inner_product")
    path = folder / "config_sentence_transformers.json"
    return overrides.apply(
        _with_similarity(_with_prompts(conventions, sentence_config), sentence_config, path, overrides)
    )


def _with_prompts(conventions: Conventions, config: SentenceConfig) -> Conventions:
    prompts, default = config.prompts, config.default_prompt
    return replace(
        conventions,
        query_prefix=next((prompts[name] for name in QUERY_PROMPTS if name in prompts), default),
        passage_prefix=next((prompts[name] for name in PASSAGE_PROMPTS if name in prompts), default),
    )


def _with_similarity(conventions: Conventions, config: SentenceConfig, path: Path, overrides: Overrides) -> Conventions:
    """The metric of the model. Vectors that are compared by cosine get unit length, after they were truncated."""
    similarity = config.similarity
    if similarity == "manhattan" and overrides.metric is None:
        raise InputError(
            "the model is compared by the Manhattan distance ('similarity_fn_name'), which retrodb cannot compute",
            where=str(path),
            remedy="Give 'retrodb embed --metric squared_l2', or use another model.",
        )
    is_unit_before = conventions.truncate_dim and conventions.normalise and similarity not in (None, "cosine")
    if is_unit_before and overrides.normalise is None:
        raise InputError(
            f"the vectors are truncated after they got unit length ('truncate_dim') and compared by {similarity}",
            where=str(path),
            remedy="Give 'retrodb embed --normalise': then they get unit length after they were truncated.",
        )
    return replace(
        conventions,
        metric=METRICS.get(similarity or "", conventions.metric),
        normalise=conventions.normalise or similarity == "cosine",  # the inner product of unit vectors
    )
