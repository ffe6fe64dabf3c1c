"""Trains a model on an `arrays` export, for `retrodb retro train` and `retrodb retro fit`.

A killed training continues with the same command: its state is in the folder of the checkpoint, see `checkpoint.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.config import RetroTrainParams
from retrodb.encode.device import choose_compute
from retrodb.engine.progress import Progress
from retrodb.errors import InputError, MismatchError, MissingFileError, UsageError
from retrodb.retro.checkpoint import (
    CARD,
    ModelBuilder,
    load_checkpoint,
    load_unfinished,
    save_checkpoint,
    save_unfinished,
)
from retrodb.retro.data import RetroData, load_arrays
from retrodb.retro.fit import RetroFit, fit_config
from retrodb.retro.model import RetroModel
from retrodb.retro.model_config import RetroConfig, config_of_size
from retrodb.retro.training import (
    TrainedModel,
    UnfinishedTraining,
    check_compatible,
    schedule_by_clock,
    schedule_by_steps,
    train_model,
    trained_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BAR = 1000  # length of the progress bar: the number of steps is not known in advance when a clock ends the training
OnStep = Callable[[int, float, float], None]


@dataclass(frozen=True)
class RetroTrainResult:
    """A finished training."""

    checkpoint: str
    num_parameters: int  # trained ones, with embeddings
    num_steps: int
    continued_at_step: int  # 0 when it started here
    num_tokens_seen: int
    loss: float  # mean over the last tenth of the steps, nats per token
    tokens_per_s: float  # of the steps of this run
    device: str
    tokenizer: str  # fingerprint
    encoder: str  # fingerprint


def run_retro_train(data: Path, out: Path, params: RetroTrainParams, progress: Progress) -> RetroTrainResult:
    """Train a RETRO model from random weights.

    Raises:
        MissingFileError, InputError: for a folder without an `arrays` export.
        UsageError: when `out` has another training or a finished model.
    """
    arrays = _training_data(load_arrays(data), params)
    config = replace(
        config_of_size(params.size, arrays.vocab_size),
        chunk_tokens=arrays.chunk_tokens,
        k=params.k or arrays.neighbours.shape[1],
        seed=params.seed,
    )
    if params.learning_rate is not None:
        config = replace(config, learning_rate=params.learning_rate)
    return _run(arrays, out, config, params, progress, RetroModel)


def run_retro_fit(base: Path, data: Path, out: Path, params: RetroTrainParams, progress: Progress) -> RetroTrainResult:
    """RETROfit a causal language model of Hugging Face transformers: it stays frozen, and only the retrieving parts are trained.

    Raises:
        InputError: for a folder without such a model.
        MismatchError: for a base with a smaller vocabulary than the data.
    """
    arrays = _training_data(load_arrays(data), params)
    model = load_base(base)
    k = params.k or arrays.neighbours.shape[1]
    config = fit_config(model, chunk_tokens=arrays.chunk_tokens, k=k, seed=params.seed)
    if params.learning_rate is not None:
        config = replace(config, learning_rate=params.learning_rate)
    if config.vocab_size < arrays.vocab_size:
        what = f"the base knows {config.vocab_size} tokens, the data has {arrays.vocab_size}"
        raise MismatchError(what, remedy="The database must be made with the base's own tokenizer.")
    # A base may have more rows of embedding than its tokenizer has tokens: they are never met.
    arrays = replace(arrays, vocab_size=config.vocab_size)
    return _run(arrays, out, config, params, progress, lambda shape: RetroFit(load_base(base), shape))


def load_base(base: Path) -> PreTrainedModel:
    """A causal language model of transformers, from a folder with safetensors."""
    from transformers import AutoModelForCausalLM

    if not (base / "config.json").exists():
        remedy = "Name the folder of a Hugging Face causal language model."
        raise MissingFileError("no such file", where=str(base / "config.json"), remedy=remedy)
    try:
        return AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        remedy = "Name the folder of a Hugging Face causal language model with safetensors."
        raise InputError(f"no causal language model ({error})", where=str(base), remedy=remedy) from error


def _training_data(data: RetroData, params: RetroTrainParams) -> RetroData:
    return replace(data.without(), encoder="") if params.without else data


def _run(
    data: RetroData, out: Path, config: RetroConfig, params: RetroTrainParams, progress: Progress, build: ModelBuilder
) -> RetroTrainResult:
    device = choose_compute(params.device).device
    out.mkdir(parents=True, exist_ok=True)
    if (out / CARD).exists():
        what = f"a trained model of {len(load_checkpoint(out, build).progress):,} steps already exists"
        raise UsageError(what, where=str(out), remedy="Give another --out, or delete the folder.")
    unfinished = load_unfinished(out, build)
    if unfinished is not None:
        _check_same(out, unfinished, config, data, params)
    done = unfinished.trained.progress if unfinished else ()
    model = unfinished.trained.model if unfinished else build(config)
    schedule = (
        schedule_by_steps(params.steps, len(done))
        if params.minutes is None
        else schedule_by_clock(60 * params.minutes, time.monotonic, done[-1] if done else 0.0)
    )
    start, tokens_before = time.monotonic(), unfinished.trained.tokens_seen if unfinished else 0
    with training_bar(progress, "train", done[-1] if done else 0.0) as on_step:
        trained = train_model(
            model,
            data,
            schedule,
            batch_chunks=params.batch_chunks,
            device=device,
            on_step=on_step,
            resume=unfinished,
            save=lambda state: save_unfinished(state, out),
            save_every=params.save_every,
        )
    elapsed_s = max(time.monotonic() - start, 1e-9)
    save_checkpoint(trained, out)
    return _result(trained, out, len(done), (trained.tokens_seen - tokens_before) / elapsed_s, device)


def _check_same(
    out: Path, unfinished: UnfinishedTraining, config: RetroConfig, data: RetroData, params: RetroTrainParams
) -> None:
    trained = unfinished.trained
    before = trained.model.config, trained.tokenizer, trained.encoder, trained.batch_chunks
    last = len(trained.progress) - 1
    is_on_schedule = params.minutes is not None or trained.progress[last] == last / params.steps
    if before != (config, data.tokenizer, data.encoder, params.batch_chunks) or not is_on_schedule:
        what = f"another training stopped here after {len(trained.progress):,} steps"
        remedy = "Give the options and the data that it started with, or another --out."
        raise UsageError(what, where=str(out), remedy=remedy)
    check_compatible(config, data)


@contextmanager
def training_bar(progress: Progress, name: str, done: float = 0.0) -> Iterator[OnStep]:
    """A progress bar for `train_model`, in thousandths of the schedule, with the step and the loss."""
    reached = int(done * _BAR)
    with progress.stage(name, _BAR - reached) as bar:

        def on_step(step: int, loss: float, progress: float) -> None:
            nonlocal reached
            bar.advance(int(progress * _BAR) - reached)
            reached = int(progress * _BAR)
            bar.show(f"step {step + 1:,}, loss {loss:.3f}")

        yield on_step


def _result(
    trained: TrainedModel, out: Path, continued_at_step: int, tokens_per_s: float, device: str
) -> RetroTrainResult:
    last = trained.losses[-max(1, len(trained.losses) // 10) :]
    return RetroTrainResult(
        checkpoint=str(out),
        num_parameters=sum(weight.numel() for weight in trained_weights(trained.model).values()),
        num_steps=len(trained.progress),
        continued_at_step=continued_at_step,
        num_tokens_seen=trained.tokens_seen,
        loss=float(np.mean(last)) if last else float("nan"),
        tokens_per_s=tokens_per_s,
        device=device,
        tokenizer=trained.tokenizer,
        encoder=trained.encoder,
    )
