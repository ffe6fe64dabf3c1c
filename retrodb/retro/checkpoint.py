"""Keeps trained models, and trainings that are not finished, in a folder.

model.safetensors      the weights that were trained
config.json            the model's shape and the record of its training
training.safetensors   while it lasts: the weights, the optimiser's state, and the record in the file's header
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrodb.errors import InputError, MissingFileError
from retrodb.retro.config import RetroConfig
from retrodb.retro.model import LanguageModel, RetroModel
from retrodb.retro.train import TrainedModel, Unfinished, trained_weights

WEIGHTS, CARD, TRAINING = "model.safetensors", "config.json", "training.safetensors"
Build = Callable[[RetroConfig], LanguageModel]
"""Makes the untrained model; for a RETROfit `lambda config: RetroFit(base, config)`."""


def save_checkpoint(trained: TrainedModel, folder: Path) -> None:
    """Writes a finished model into a folder that exists; the card comes last, and with it the checkpoint is there."""
    _write(folder / WEIGHTS, lambda path: save_file(_weights(trained.model), path))
    _write(folder / CARD, lambda path: path.write_text(json.dumps(_card(trained), indent=1)))
    (folder / TRAINING).unlink(missing_ok=True)


def load_checkpoint(folder: Path, build: Build = RetroModel) -> TrainedModel:
    """The trained model in `folder`.

    Raises:
        MissingFileError: for a folder without a checkpoint.
        InputError: for files that are no checkpoint or do not belong together.
    """
    for name in (CARD, WEIGHTS):
        if not (folder / name).exists():
            raise MissingFileError("no such file", where=str(folder / name), remedy="Run 'retrodb retro train'.")
    try:
        return _trained(json.loads((folder / CARD).read_bytes()), load_file(folder / WEIGHTS), build)
    except _FAULTS as error:
        what = f"not a checkpoint of this retrodb ({error})"
        raise InputError(what, where=str(folder), remedy="Train again with 'retrodb retro train'.") from error


def save_unfinished(unfinished: Unfinished, folder: Path) -> None:
    """Writes a training that goes on, in one step: the file is the old one or the new one."""
    tensors = {f"weight/{name}": weight for name, weight in _weights(unfinished.so_far.model).items()}
    tensors |= {name: tensor.detach().cpu().contiguous() for name, tensor in unfinished.optimiser.items()}
    card = json.dumps(_card(unfinished.so_far))
    _write(folder / TRAINING, lambda path: save_file(tensors, path, metadata={"card": card}))


def load_unfinished(folder: Path, build: Build = RetroModel) -> Unfinished | None:
    """The training that stopped in `folder`; None when there is none.

    Raises:
        InputError: for a file that holds no training.
    """
    path = folder / TRAINING
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
        tensors = load_file(path)
        weights = {name.removeprefix("weight/"): tensors.pop(name) for name in [*tensors] if name.startswith("weight/")}
        return Unfinished(_trained(card, weights, build), tensors)
    except _FAULTS as error:
        what = f"not a training of this retrodb ({error})"
        raise InputError(what, where=str(path), remedy="Delete the file and train from the beginning.") from error


_FAULTS = (ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in trained_weights(model).items()}


def _card(trained: TrainedModel) -> dict[str, Any]:
    fields = ("tokenizer", "encoder", "batch_chunks", "tokens_seen", "progress", "losses")
    return {"config": asdict(trained.model.config)} | {name: getattr(trained, name) for name in fields}


def _trained(card: dict[str, Any], weights: dict[str, Tensor], build: Build) -> TrainedModel:
    model = build(RetroConfig(**card["config"] | {"cross_layers": tuple(card["config"]["cross_layers"])}))
    if weights.keys() != trained_weights(model).keys():
        raise KeyError("the weights are those of another model")
    model.load_state_dict(weights, strict=False)  # what was not trained is not there
    record = tuple(card["progress"]), tuple(card["losses"]), int(card["tokens_seen"])
    return TrainedModel(model.eval(), card["tokenizer"], *record, card["encoder"], card["batch_chunks"])


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Under another name first, then renamed: a file is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
