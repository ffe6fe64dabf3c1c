"""Loads an encoder by its name: `hashing:<dim>`, a model folder, or a name on the Hugging Face hub.

The digest of the weights identifies a model. The folder that they were read from is only provenance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from retrodb.encode.conventions import Conventions, Overrides, read_conventions
from retrodb.encode.encoder import Encoder
from retrodb.encode.identity import EncoderIdentity, Provenance, library_versions
from retrodb.encode.model_folder import (
    digest_config,
    digest_weights,
    find_model,
    read_model_json,
    read_tokenizer,
    weight_files,
)
from retrodb.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from retrodb.encode.chunk_tokenizer import TokenizerSpec
    from retrodb.encode.device import Compute
    from retrodb.encode.transformer_encoder import HiddenStates, TransformerEncoder


def resolve_encoder(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
    tokenize_workers: int | None = None,
    overrides: Overrides | None = None,
    query_model: str | None = None,
) -> Encoder:
    """The encoder of this name, ready to encode.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: of the computation: "auto", "float32" or "bfloat16".
        batch_tokens: maximum number of tokens in a batch.
        threads: batches that a CPU computes in parallel.
        tokenize_workers: processes that tokenize; 0 is a thread.
        overrides: conventions that differ from those of the model. `conventions.RETRO` are those of the paper.
        query_model: name of another model for the queries, as in DPR. Its vectors must have the same dimension.

    Raises:
        UsageError: an invalid name, device or dtype.
        InputError: the model does not exist or cannot be used; the message says why.
        MismatchError: parts of the model do not match.
    """
    if name.startswith("hashing:"):
        if overrides is not None or query_model is not None:
            raise UsageError("a hashing encoder has no conventions to change", where=name)
        return _hashing(name)
    from retrodb.encode.device import choose_compute

    compute = choose_compute(device, dtype, batch_tokens=batch_tokens, threads=threads)
    if tokenize_workers is None:  # tokenizing needs several cores for a GPU, and a fraction of one core for a CPU
        tokenize_workers = 2 if compute.is_cuda else 0
    overrides = overrides or Overrides()
    encoder = _transformer(name, compute, overrides, tokenize_workers)
    if query_model is None:
        return encoder
    queries = _transformer(query_model, compute, overrides, 0)
    if queries.identity.dimension != encoder.identity.dimension:
        raise MismatchError(
            f"'{query_model}' gives {queries.identity.dimension} dimensions and '{name}' {encoder.identity.dimension}",
            remedy="Use the two parts of one model.",
        )
    encoder.query_encoder = queries
    encoder.identity = replace(
        encoder.identity, query_model=queries.identity, query_prefix=queries.identity.query_prefix
    )
    return encoder


def _hashing(name: str) -> Encoder:
    from retrodb.encode.hashing import HashingEncoder

    dimension = name.removeprefix("hashing:")
    if not dimension.isdecimal() or not 1 <= int(dimension) <= 65_536:
        raise UsageError(f"'{name}' has no dimension from 1 to 65,536", remedy="Write it as hashing:256.")
    return HashingEncoder(int(dimension))


def _transformer(name: str, compute: Compute, overrides: Overrides, tokenize_workers: int) -> TransformerEncoder:
    from retrodb.encode.chunk_tokenizer import ChunkTokenizer, TokenizerSpec
    from retrodb.encode.transformer_encoder import TransformerEncoder

    folder, origin = find_model(name)
    config = read_model_json(folder / "config.json")
    files = weight_files(folder)
    conventions = overrides.apply(read_conventions(folder))
    model, implementation, dimension = _load_model(folder, files, compute)
    spec = TokenizerSpec(read_tokenizer(folder), _max_length(conventions, model.max_length, folder))
    tokenizer = ChunkTokenizer(spec)
    if tokenizer.num_ids > model.num_embeddings:
        raise MismatchError(
            f"the tokenizer has {tokenizer.num_ids} ids and the model {model.num_embeddings} embeddings",
            where=str(folder),
            remedy="Use the tokenizer that the model was trained with.",
        )
    identity = _identity(config, digest_weights(files), conventions, spec, dimension)
    libraries = ("torch", "tokenizers") if implementation == "lean" else ("torch", "tokenizers", "transformers")
    provenance = Provenance(
        name=name,
        origin=origin,
        implementation=implementation,
        device=compute.device,
        compute_dtype=compute.dtype,
        window_rows=compute.window_rows,
        batch_tokens=compute.batch_tokens,
        versions=library_versions(*libraries),
    )
    return TransformerEncoder(
        identity, provenance, model, spec, tokenizer.num_special, compute, tokenize_workers=tokenize_workers
    )


def _identity(
    config: Mapping[str, object], weights: str, conventions: Conventions, spec: TokenizerSpec, dimension: int
) -> EncoderIdentity:
    return EncoderIdentity(
        kind="bert",
        dimension=dimension,
        weights=weights,
        config=digest_config(config),
        tokenizer=spec.digest,
        pooling=conventions.pooling,
        pooling_span=conventions.pooling_span,
        normalise=conventions.normalise,
        query_prefix=conventions.query_prefix,
        passage_prefix=conventions.passage_prefix,
        max_length=spec.max_length,
        metric=conventions.metric,
    )


def _load_model(
    folder: Path, files: list[Path], compute: Compute
) -> tuple[HiddenStates, Literal["lean", "transformers"], int]:
    """The model, the implementation that computes it, and the dimension of its vectors."""
    from retrodb.encode.bert import BertConfig, LeanBert, read_weights
    from retrodb.encode.device import DTYPES

    dtype = DTYPES[compute.dtype]
    config = BertConfig.from_json(read_model_json(folder / "config.json"))
    if config is not None:
        return LeanBert(config, read_weights(files), device=compute.device, dtype=dtype), "lean", config.hidden
    from retrodb.encode.transformers_model import TransformersModel

    model = TransformersModel(folder, device=compute.device, dtype=dtype)
    return model, "transformers", model.hidden


def _max_length(conventions: Conventions, num_positions: int, folder: Path) -> int:
    max_length = min(conventions.max_length or num_positions, num_positions)
    if max_length < 3:
        raise UsageError(f"a maximum of {max_length} tokens leaves no room for text", where=str(folder))
    return max_length
