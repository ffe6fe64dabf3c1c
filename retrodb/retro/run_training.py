"""Trains a model on an `arrays` export, for `retrodb retro train` and `retrodb retro fit`.

A killed training continues with the same command: its state is in the folder of the checkpoint, see `checkpoint`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrodb.config import RetroTrainParams
from retrodb.encode.device import choose_compute
from retrodb.engine.progress import Progress
from retrodb.errors import InputError, MismatchError, MissingFileError, UsageError
from retrodb.retro.checkpoint import CARD, Build, load_checkpoint, load_unfinished, save_checkpoint, save_unfinished
from retrodb.retro.config import RetroConfig, sized
from retrodb.retro.data import RetroData, load_arrays
from retrodb.retro.fit import RetroFit, fit_config
from retrodb.retro.model import RetroModel
from retrodb.retro.train import TrainedModel, Unfinished, by_clock, by_steps, check_fit, train, trained_weights

_BAR = 1000  # a progress bar in thousandths: with a clock the number of steps is not known beforehand
OnStep = Callable[[int, float, float], None]


@dataclass(frozen=True)
class RetroTrainResult:
    """A finished training."""

    checkpoint: str
    parameters: int  # that were trained, embeddings counted
    steps: int
    continued_at: int  # the step at which it went on; 0 when it began here
    tokens_seen: int
    loss: float  # mean over the last tenth of the steps, nats per token
    tokens_per_s: float  # of the steps done now
    device: str
    tokenizer: str  # fingerprints of what it was trained with
    encoder: str


def run_retro_train(data: Path, out: Path, params: RetroTrainParams, progress: Progress) -> RetroTrainResult:
    """Train a model of our own from nothing.

    Raises:
        MissingFileError, InputError: for a folder that holds no `arrays` export.
        UsageError: when `out` holds another training or a finished model.
    """
    arrays = _prepared(load_arrays(data), params)
    config = sized(
        params.size,
        arrays.vocab_size,
        chunk_tokens=arrays.chunk_tokens,
        k=params.k or arrays.neighbours.shape[1],
        seed=params.seed,
        **_given(learning_rate=params.learning_rate),
    )
    return _run(arrays, out, config, params, progress, RetroModel)


def run_retro_fit(base: Path, data: Path, out: Path, params: RetroTrainParams, progress: Progress) -> RetroTrainResult:
    """RETROfit a causal language model of Hugging Face transformers: it stays frozen, what retrieves is trained.

    Raises:
        InputError: for a folder without such a model.
        MismatchError: for a base with another vocabulary than the data's.
    """
    arrays = _prepared(load_arrays(data), params)
    model = load_base(base)
    rate = _given(learning_rate=params.learning_rate)
    k = params.k or arrays.neighbours.shape[1]
    config = fit_config(model, chunk_tokens=arrays.chunk_tokens, k=k, seed=params.seed, **rate)
    if config.vocab_size < arrays.vocab_size:
        what = f"the base knows {config.vocab_size} tokens, the data has {arrays.vocab_size}"
        raise MismatchError(what, remedy="The database must be made with the base's own tokenizer.")
    # A base may have more rows of embedding than its tokenizer has tokens: they are never met.
    arrays = replace(arrays, vocab_size=config.vocab_size)
    return _run(arrays, out, config, params, progress, lambda shape: RetroFit(load_base(base), shape))


def load_base(base: Path) -> Any:
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


def _prepared(data: RetroData, params: RetroTrainParams) -> RetroData:
    return replace(data.without(), encoder="") if params.without else data


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _run(
    data: RetroData, out: Path, config: RetroConfig, params: RetroTrainParams, progress: Progress, build: Build
) -> RetroTrainResult:
    device = choose_compute(params.device).device
    out.mkdir(parents=True, exist_ok=True)
    if (out / CARD).exists():
        what = f"a trained model of {len(load_checkpoint(out, build).progress):,} steps is there already"
        raise UsageError(what, where=str(out), remedy="Give another --out, or delete the folder.")
    unfinished = load_unfinished(out, build)
    if unfinished is not None:
        _check_same(out, unfinished, config, data, params)
    done = unfinished.so_far.progress if unfinished else ()
    model = unfinished.so_far.model if unfinished else build(config)
    schedule = (
        by_steps(params.steps, len(done))
        if params.minutes is None
        else by_clock(60 * params.minutes, time.monotonic, done[-1] if done else 0.0)
    )
    start, tokens_before = time.monotonic(), unfinished.so_far.tokens_seen if unfinished else 0
    with shown_steps(progress, "train", done[-1] if done else 0.0) as on_step:
        trained = train(
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
    out: Path, unfinished: Unfinished, config: RetroConfig, data: RetroData, params: RetroTrainParams
) -> None:
    so_far = unfinished.so_far
    began = so_far.model.config, so_far.tokenizer, so_far.encoder, so_far.batch_chunks
    last = len(so_far.progress) - 1
    is_on_schedule = params.minutes is not None or so_far.progress[last] == last / params.steps
    if began != (config, data.tokenizer, data.encoder, params.batch_chunks) or not is_on_schedule:
        what = f"another training stopped here after {len(so_far.progress):,} steps"
        remedy = "Give the options and the data that it began with, or another --out."
        raise UsageError(what, where=str(out), remedy=remedy)
    check_fit(config, data)


@contextmanager
def shown_steps(progress: Progress, name: str, done: float = 0.0) -> Iterator[OnStep]:
    """A progress bar for `train`, in thousandths of the schedule, with the loss and the tokens behind it."""
    reached = int(done * _BAR)
    with progress.stage(name, _BAR - reached) as bar:

        def on_step(step: int, loss: float, share: float) -> None:
            nonlocal reached
            bar.advance(int(share * _BAR) - reached)
            reached = int(share * _BAR)
            bar.show(f"step {step + 1:,}, loss {loss:.3f}")

        yield on_step


def _result(trained: TrainedModel, out: Path, continued_at: int, tokens_per_s: float, device: str) -> RetroTrainResult:
    last = trained.losses[-max(1, len(trained.losses) // 10) :]
    return RetroTrainResult(
        checkpoint=str(out),
        parameters=sum(weight.numel() for weight in trained_weights(trained.model).values()),
        steps=len(trained.progress),
        continued_at=continued_at,
        tokens_seen=trained.tokens_seen,
        loss=float(np.mean(last)) if last else float("nan"),
        tokens_per_s=tokens_per_s,
        device=device,
        tokenizer=trained.tokenizer,
        encoder=trained.encoder,
    )
