"""Loads an encoder by its name: `hashing:<dim>`, a model folder, or a name on the Hugging Face hub.

The digest of the weights identifies a model. The folder that they were read from is only provenance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from retrodb.encode.conventions import Conventions, Overrides, read_conventions
from retrodb.encode.encoder import Encoder, OutOfDeviceMemory
from retrodb.encode.identity import EncoderIdentity, Provenance, library_versions
from retrodb.encode.model_folder import (
    digest_config,
    digest_weights,
    find_model,
    read_model_json,
    read_tokenizer,
    weight_files,
)
from retrodb.errors import InputError, MismatchError, RetroDBError, UsageError

if TYPE_CHECKING:
    from retrodb.encode.chunk_tokenizer import TokenizerSpec
    from retrodb.encode.device import Compute
    from retrodb.encode.transformer_encoder import HiddenStates, TransformerEncoder

NO_LIMIT = 1_000_000  # tokens; transformers writes 10^30 for "no limit"
DEFAULT_LENGTH = 512  # tokens, if neither the model nor its tokenizer has a limit


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

    files = read_model_files(name, overrides)
    model, implementation, dimension = _load_model(files, compute)
    conventions, folder = files.conventions, files.folder
    if conventions.embedding_dimension not in (None, dimension):
        raise MismatchError(
            f"the pooling expects {conventions.embedding_dimension} dimensions and the model has {dimension}",
            where=str(folder),
            remedy="Download the model again.",
        )
    dimension = min(dimension, conventions.truncate_dim or dimension)
    spec = TokenizerSpec(files.tokenizer, _max_length(conventions, model.max_length, folder))
    tokenizer = _with_place(lambda: ChunkTokenizer(spec), folder)
    if tokenizer.num_ids > model.num_embeddings:
        raise MismatchError(
            f"the tokenizer has {tokenizer.num_ids} ids and the model {model.num_embeddings} embeddings",
            where=str(folder),
            remedy="Use the tokenizer that the model was trained with.",
        )
    identity = _identity(files.config, digest_weights(files.weights), conventions, spec, dimension)
    libraries = ("torch", "tokenizers") if implementation == "lean" else ("torch", "tokenizers", "transformers")
    provenance = Provenance(
        name=name,
        origin=files.origin,
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


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model that were read and checked, without its weights."""

    folder: Path  # of config.json, the weights and the tokenizer
    origin: str
    config: dict[str, object]
    conventions: Conventions
    weights: list[Path]
    tokenizer: str

    @property
    def model_type(self) -> str:
        """The architecture."""
        return str(self.config.get("model_type"))


def read_model_files(name: str, overrides: Overrides) -> ModelFiles:
    """The files of a model, without its weights.

    Raises:
        InputError: the model does not exist, or a setting cannot take effect.
    """
    root, origin = find_model(name)
    conventions = read_conventions(root, overrides)
    folder = conventions.transformer or root
    config = read_model_json(folder / "config.json")
    if config.get("quantization_config"):
        raise InputError(
            "the weights are quantized ('quantization_config'), which retrodb cannot compute",
            where=str(folder / "config.json"),
            remedy="Use the model with its original weights.",
        )
    weights = weight_files(folder)
    tokenizer = read_tokenizer(folder, lowercase=conventions.lowercase)
    return ModelFiles(folder, origin, config, conventions, weights, tokenizer)


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


def _load_model(files: ModelFiles, compute: Compute) -> tuple[HiddenStates, Literal["lean", "transformers"], int]:
    """The model, the implementation that computes it, and the hidden width."""
    from retrodb.encode.bert import BertConfig, LeanBert, read_weights
    from retrodb.encode.device import DTYPES

    dtype, config_path = DTYPES[compute.dtype], files.folder / "config.json"
    model: HiddenStates
    try:
        config = BertConfig.from_json(files.config)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a setting of the model is invalid ({error})", where=str(config_path), remedy="Download the model again."
        ) from error
    if config is not None:
        weights = read_weights(files.weights)
        model = _with_place(lambda: LeanBert(config, weights, device=compute.device, dtype=dtype), files.folder)
        return model, "lean", _probe(model, files, compute.device)
    from retrodb.encode.transformers_model import TransformersModel

    read_weights(files.weights)  # a damaged file is named
    model = TransformersModel(files.folder, model_type=files.model_type, device=compute.device, dtype=dtype)
    return model, "transformers", _probe(model, files, compute.device)


def _probe(model: HiddenStates, files: ModelFiles, device: str) -> int:
    """The hidden width, after one row was computed.

    Raises:
        InputError: the model cannot be computed from token ids alone, or its settings and weights do not match.
    """
    import torch

    length = min(3, model.max_length or 3)
    ids_BL = torch.zeros((1, length), dtype=torch.int32, device=device)
    with torch.inference_mode():
        hidden_BLD = _with_place(lambda: model(ids_BL), files.folder, f"the model of type '{files.model_type}' failed")
    if hidden_BLD.shape[:2] != (1, length):
        raise InputError(
            f"the model of type '{files.model_type}' does not give one vector per token",
            where=str(files.folder),
            remedy="Use another encoder.",
        )
    return int(hidden_BLD.shape[2])


_Made = TypeVar("_Made")


def _with_place(make: Callable[[], _Made], folder: Path, what: str = "the model cannot be loaded") -> _Made:
    """What `make` returns. Errors name the folder of the model."""
    try:
        return make()
    except InputError as error:
        raise InputError(error.what, where=error.where or str(folder), remedy=error.remedy) from error
    except (MemoryError, RetroDBError):
        raise
    except Exception as error:  # of torch and transformers, which have no common class
        if type(error).__name__ == "OutOfMemoryError":  # of torch
            raise OutOfDeviceMemory(
                "the model does not fit into the memory of the device", where=str(folder), remedy="Use --device cpu."
            ) from error
        message = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(
            f"{what} ({message})", where=str(folder), remedy="Download the model again, or use another encoder."
        ) from error


def _max_length(conventions: Conventions, num_positions: int | None, folder: Path) -> int:
    """The number of tokens at which texts are cut: the smaller of what the model says and of its positions."""
    wanted = conventions.max_length if (conventions.max_length or NO_LIMIT) < NO_LIMIT else None
    max_length = min(wanted or num_positions or DEFAULT_LENGTH, num_positions or NO_LIMIT)
    if max_length < 3:
        raise UsageError(f"a maximum of {max_length} tokens leaves no room for text", where=str(folder))
    return max_length
