"""Stores trained models, and trainings that are not finished, in a folder.

model.safetensors      the weights that were trained
config.json            the model's shape and the record of its training
training.safetensors   during a training: the weights, the optimiser's state, and the record in the file's header
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrodb.errors import InputError, MismatchError, MissingFileError
from retrodb.retro.model import LanguageModel, RetroModel
from retrodb.retro.model_config import RetroConfig
from retrodb.retro.training import TrainedModel, UnfinishedTraining, trained_weights
from retrodb.store.whole_file import write_whole_with

WEIGHTS, CARD, TRAINING = "model.safetensors", "config.json", "training.safetensors"
ModelBuilder = Callable[[RetroConfig], LanguageModel]
"""Builds the untrained model; for a RETROfit `lambda config: RetroFit(base, config)`."""

_READ_ERRORS = (ValueError, KeyError, TypeError, RuntimeError, SafetensorError, msgspec.ValidationError)


@dataclass(frozen=True)
class TrainingCard:
    """A trained model without its weights, as it is stored. The fields are in the order of the file."""

    config: RetroConfig
    tokenizer: str  # see `TrainedModel` for this field and those below
    encoder: str
    batch_chunks: int
    tokens_seen: int
    progress: tuple[float, ...]
    losses: tuple[float, ...]
    base: str = ""  # fingerprint of the frozen base of a RETROfit; "" when there is none, or it was not recorded

    @classmethod
    def of(cls, trained: TrainedModel) -> TrainingCard:
        """The card of a model."""
        return cls(
            config=trained.model.config,
            tokenizer=trained.tokenizer,
            encoder=trained.encoder,
            batch_chunks=trained.batch_chunks,
            tokens_seen=trained.tokens_seen,
            progress=trained.progress,
            losses=trained.losses,
            base=trained.model.base_fingerprint,
        )

    @classmethod
    def parse(cls, content: str | bytes) -> TrainingCard:
        """Read the JSON of a card. Raises one of `_READ_ERRORS`."""
        values = json.loads(content)  # not by msgspec, because a loss may be NaN
        card = msgspec.convert(values, cls)
        if unknown := values["config"].keys() - asdict(card.config).keys():
            raise KeyError(f"unknown field '{min(unknown)}'")
        return card

    def dump(self, indent: int | None = None) -> str:
        """The JSON of the card."""
        return json.dumps(asdict(self), indent=indent)


def save_checkpoint(trained: TrainedModel, folder: Path) -> None:
    """Write a finished model into an existing folder. The card is written last and completes the checkpoint."""
    write_whole_with(folder / WEIGHTS, lambda path: save_file(_weights(trained.model), path))
    write_whole_with(folder / CARD, lambda path: path.write_text(TrainingCard.of(trained).dump(indent=1)))
    (folder / TRAINING).unlink(missing_ok=True)


def load_checkpoint(folder: Path, build: ModelBuilder = RetroModel) -> TrainedModel:
    """The trained model in `folder`.

    Raises:
        MissingFileError: for a folder without a checkpoint.
        InputError: for files that are no checkpoint or do not belong together.
        MismatchError: for another base than that of the training, with both fingerprints.
    """
    for name in (CARD, WEIGHTS):
        if not (folder / name).exists():
            raise MissingFileError("no such file", where=str(folder / name), remedy="Run 'retrodb retro train'.")
    try:
        card = TrainingCard.parse((folder / CARD).read_bytes())
        return _restore_model(card, load_file(folder / WEIGHTS), build)
    except _READ_ERRORS as error:
        what = f"not a checkpoint of this retrodb ({error})"
        raise InputError(what, where=str(folder), remedy="Train again with 'retrodb retro train'.") from error


def save_unfinished(unfinished: UnfinishedTraining, folder: Path) -> None:
    """Write the state of a training in one step: the file is the old one or the new one."""
    tensors = {f"weight/{name}": weight for name, weight in _weights(unfinished.trained.model).items()}
    tensors |= {name: tensor.detach().cpu().contiguous() for name, tensor in unfinished.optimiser.items()}
    metadata = {"card": TrainingCard.of(unfinished.trained).dump()}
    write_whole_with(folder / TRAINING, lambda path: save_file(tensors, path, metadata=metadata))


def load_unfinished(folder: Path, build: ModelBuilder = RetroModel) -> UnfinishedTraining | None:
    """The training that stopped in `folder`; None when there is none.

    Raises:
        InputError: for a file that is not the state of a training.
        MismatchError: for another base than that of the training.
    """
    path = folder / TRAINING
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            card = TrainingCard.parse((file.metadata() or {})["card"])
        tensors = load_file(path)
        weights = {name.removeprefix("weight/"): tensors.pop(name) for name in [*tensors] if name.startswith("weight/")}
        return UnfinishedTraining(_restore_model(card, weights, build), tensors)
    except _READ_ERRORS as error:
        what = f"not a training of this retrodb ({error})"
        raise InputError(what, where=str(path), remedy="Delete the file and train from the beginning.") from error


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in trained_weights(model).items()}


def _check_base(recorded: str, given: str) -> None:
    """Raises MismatchError for another base than that of the training. Older checkpoints have no record of it."""
    if not recorded or recorded == given:
        return
    if not given:
        what = f"the checkpoint is a RETROfit of the base {recorded}"
        raise MismatchError(what, remedy="Name the folder of the base, with --base on the command line.")
    what = f"the checkpoint was trained on the base {recorded}, the given base is {given}"
    raise MismatchError(what, remedy="Name the folder of the base that it was trained on.")


def _restore_model(card: TrainingCard, weights: dict[str, Tensor], build: ModelBuilder) -> TrainedModel:
    model = build(card.config)
    _check_base(card.base, model.base_fingerprint)
    if weights.keys() != trained_weights(model).keys():
        raise KeyError("the weights are those of another model")
    model.load_state_dict(weights, strict=False)  # weights that were not trained are not stored
    return TrainedModel(
        model=model.eval(),
        tokenizer=card.tokenizer,
        progress=card.progress,
        losses=card.losses,
        tokens_seen=card.tokens_seen,
        encoder=card.encoder,
        batch_chunks=card.batch_chunks,
    )
