"""Refuses an encoder before documents are read with which it could not be used."""

from __future__ import annotations

import os
from pathlib import Path

from retrodb.config import EmbedParams
from retrodb.encode.conventions import Overrides
from retrodb.encode.model_folder import MINILM, is_on_this_machine
from retrodb.encode.resolve import read_model_files, resolve_encoder
from retrodb.errors import InputError, UsageError

# The weights of larger models are not loaded to check them; 2 GiB are read in seconds.
LARGEST_LOADED = 2 << 30
HUB_TIMEOUT_S = 5.0
CONVENTIONS = ("pooling", "pooling_span", "normalise", "metric", "query_prefix", "passage_prefix", "max_length")


def check_encoder(params: EmbedParams) -> None:
    """Refuse an encoder that certainly cannot be loaded.

    - `hashing:DIM` is parsed.
    - A folder or a model in the cache of the hub is loaded as `embed` loads it, on the CPU. Of a model with more than 2 GiB of
      weights only the other files are read.
    - The default encoder is always accepted, because nobody may have chosen it: the database can be embedded with another one.
    - Another name is looked up on the Hugging Face hub, for at most 5 seconds. It is refused if the name is invalid, if the
      hub says that there is no such model, or if `HF_HUB_OFFLINE` is set. If the hub cannot be reached, the name is
      accepted: `embed` may run later, or on another machine.

    Raises:
        UsageError: an invalid name, or a setting that the encoder does not have.
        InputError, MismatchError, MissingDependency: the encoder cannot be loaded; the message says why.
    """
    settings = {name: getattr(params, name) for name in CONVENTIONS}
    overrides = Overrides(**{name: value for name, value in settings.items() if value is not None})
    names = [name for name in (params.encoder, params.query_model) if name is not None]
    if params.encoder.startswith("hashing:"):
        resolve_encoder(
            params.encoder, overrides=None if overrides == Overrides() else overrides, query_model=params.query_model
        )
        return
    for name in names:
        if not name.strip():
            raise UsageError(
                "the name of the encoder is empty", remedy="Give a folder, a Hugging Face name or hashing:DIM."
            )
        if name == MINILM and not Path(name).is_dir():
            continue
        if is_on_this_machine(name):
            _check_files(name, overrides)
        else:
            _check_hub(name)


def _check_files(name: str, overrides: Overrides) -> None:
    files = read_model_files(name, overrides)
    if sum(file.stat().st_size for file in files.weights) <= LARGEST_LOADED:
        resolve_encoder(name, device="cpu", dtype="float32", overrides=None if overrides == Overrides() else overrides)


def _check_hub(name: str) -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    if os.path.lexists(name) or Path(name).is_absolute() or name.startswith(("./", "../", "~")):
        raise InputError("the encoder is not a folder", where=name, remedy="Name the folder of a model.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"there is no folder '{name}', and it is not a valid name of a model",
            remedy="Give a folder, a Hugging Face name or hashing:DIM.",
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"there is no folder '{name}', the model is not in the cache of the Hugging Face hub, and HF_HUB_OFFLINE is set",
            remedy="Download it first, or use its folder.",
        )
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no folder '{name}', and the Hugging Face hub has no such model, or it needs a login",
            remedy="Check the name, or log in with: hf auth login",
        ) from error
    except Exception:  # noqa: BLE001 - the network fails in many ways; `embed` says what is wrong if it still is
        return
