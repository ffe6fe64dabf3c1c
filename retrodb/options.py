"""The options of the stages as keyword arguments: for every parameter class of `retrodb.config` its fields, by name.

Methods take them as `**options: Unpack[IngestOptions]`, so that editors and type checkers know every name and type. An
option that is left out, or None, keeps the default of its parameter class. `tests/test_options.py` compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict


class InitOptions(TypedDict, total=False):
    """Fields of `InitParams`."""

    tokenizer: str
    chunk_tokens: int
    min_key_tokens: int
    encoder: str
    preset: str | None


class IngestOptions(TypedDict, total=False):
    """Fields of `IngestParams`."""

    source: str
    format: str
    id_field: str | None
    text_field: str | None
    key_field: str | None
    value_field: str | None
    metadata_fields: tuple[str, ...] | None
    drop_metadata: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    marker: str | None
    front_matter: str
    mirror: bool
    limit: int | None
    holdout: float
    max_document_chars: int
    oversize: str
    max_record_bytes: int
    max_reject_rate: float


class DedupOptions(TypedDict, total=False):
    """Fields of `DedupParams`."""

    ngram: int
    rule: str
    level: str
    short_texts: str
    text_template: str | None
    max_document_frequency: float | None
    method: str
    permutations: int
    bands: str


class NearDuplicatesOptions(TypedDict, total=False):
    """Fields of `NearDuplicatesParams`."""

    jaccard: float
    keep: str
    ngram: int
    permutations: int
    bands: str


class TagOptions(TypedDict, total=False):
    """Fields of `TagParams`."""

    wordlist: str | None
    regex: str | None
    hf_model: str | None
    python: str | None
    label: str | None
    measure: str


class EmbedOptions(TypedDict, total=False):
    """Fields of `EmbedParams`."""

    encoder: str
    query_model: str | None
    pooling: str | None
    pooling_span: str | None
    normalise: bool | None
    metric: str | None
    query_prefix: str | None
    passage_prefix: str | None
    max_length: int | None
    keep_vectors: bool | None
    factory: str | None


class IndexOptions(TypedDict, total=False):
    """Fields of `IndexParams`."""

    factory: str
    train_sample: int | None
    seed: int
    bytes_per_vector: int | None
    search_memory_bytes: int


class NeighboursOptions(TypedDict, total=False):
    """Fields of `NeighboursParams`."""

    k: int
    spare_neighbours: int
    exclude: tuple[str, ...]
    recall: float
    exact: bool
    where: str | None
    sample: float
    seed: int
    route_ranges: int


class ValidateOptions(TypedDict, total=False):
    """Fields of `ValidateParams`."""

    size: str
    minutes: float
    steps: int | None
    batch_chunks: int
    max_train_chunks: int
    max_heldout_chunks: int
    seed: int


class RetroTrainOptions(TypedDict, total=False):
    """Fields of `RetroTrainParams`."""

    size: str
    steps: int
    minutes: float | None
    batch_chunks: int
    k: int | None
    without: bool
    learning_rate: float | None
    seed: int
    device: str
    save_every: int


class PackingOptions(TypedDict, total=False):
    """How the sequences of a training run are packed; see `stages/queries/packed.py`."""

    tokens: str | None  # .npy file with one chunk of token ids per row
    sequences: int | None  # length in tokens, for sequences of the database's own documents
    megatron: str | None  # prefix of a Megatron data set
    blend: str | None  # several prefixes: "WEIGHT PREFIX WEIGHT PREFIX ..."
    seq_length: int | None
    train_samples: int | None
    split: str | None
    seed: int | None
    subset: str | None
    doc_ids: Sequence[str | Path]


class ExportOptions(TypedDict, total=False):
    """Fields as in `config.ExportParams`."""

    seq_length: int | None
    global_batch_size: int | None
    eval_interval: int | None
    eval_iters: int | None
    data_cache_path: str | None
    contexts: str | None
