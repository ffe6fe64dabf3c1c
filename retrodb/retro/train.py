"""Trains a model on a neighbour table, and keeps what was trained.

How long is an iterable of progress, from 0 to 1, one number a step: `by_steps` and `by_clock` make one, and the progress of an
earlier training replays its very schedule, which is how two models come to see equal tokens.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retrodb.errors import InputError, MismatchError, MissingFileError
from retrodb.retro.config import RetroConfig
from retrodb.retro.data import Batch, RetroData
from retrodb.retro.model import LanguageModel, RetroModel, token_losses

WARMUP = 0.05  # share of the training in which the learning rate rises
FINAL = 0.1  # share of the peak learning rate that is left at the end
WEIGHT_DECAY = 0.1  # of matrices only
BATCH_CHUNKS = 64  # 4,096 tokens a step
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class TrainedModel:
    """A model with the record of its training."""

    model: LanguageModel
    tokenizer: str  # digest of the tokenizer whose tokens it learned
    progress: tuple[float, ...]  # the schedule that was followed, one number a step
    losses: tuple[float, ...]  # of each step, nats per token
    tokens_seen: int  # without padding


def by_steps(steps: int) -> Iterator[float]:
    """Progress for so many steps."""
    return (step / steps for step in range(steps))


def by_clock(seconds: float, clock: Callable[[], float]) -> Iterator[float]:
    """Progress by the time that `clock` tells (`time.monotonic`), ending after about so many seconds."""
    start = clock()
    while (share := (clock() - start) / seconds) < 1.0:
        yield share


def train(
    model: LanguageModel,
    data: RetroData,
    progress: Iterable[float],
    *,
    batch_chunks: int = BATCH_CHUNKS,
    device: str = "cpu",
    on_step: Callable[[int, float, float], None] = lambda step, loss, progress: None,
) -> TrainedModel:
    """Trains the weights of `model` that require gradients, in place, by AdamW with warm-up and cosine decay.

    The result is a function of the model, the data, the progress and the batch size (on one kind of machine): the order of the
    batches comes from the configuration's seed. Queries without any neighbour train as without retrieval.

    Args:
        progress: share of the training done before each step; see the module.
        batch_chunks: chunks a step, about.
        device: any of PyTorch's; on CUDA the arithmetic is bfloat16.
        on_step: called after each step with its number, its loss in nats per token, and the progress before it.

    Raises:
        InputError: when there is nothing to train on.
        MismatchError: when the data's chunks, vocabulary or neighbours do not fit the model.
    """
    _keep_freed_memory()
    check_fit(model.config, data)
    if not len(data.query_tokens):
        raise InputError("no query chunks to train on", remedy="Ingest documents first.")
    model.to(device).train()
    optimiser = _optimiser(model)
    batches = _endless(data, model.config, batch_chunks)
    steps, losses, tokens_seen = [], [], 0
    with torch.random.fork_rng(enabled=model.config.dropout > 0):
        torch.manual_seed(model.config.seed)
        for step, share in enumerate(progress):
            batch = next(batches)
            for group in optimiser.param_groups:
                group["lr"] = model.config.learning_rate * learning_rate(share)
            loss, num_tokens = batch_loss(model, batch, device)
            (loss.sum() / num_tokens).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            steps.append(share)
            losses.append(loss.detach().sum().item() / num_tokens)
            tokens_seen += num_tokens
            on_step(step, losses[-1], share)
    return TrainedModel(model.eval(), data.tokenizer, tuple(steps), tuple(losses), tokens_seen)


def _keep_freed_memory() -> None:
    """Lets glibc keep large blocks that were freed instead of giving them back to the system.

    Every step takes and frees the same logits (tokens x vocabulary); fetching their pages anew each time took two fifths of the
    training's CPU time at a vocabulary of 16,000.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def learning_rate(progress: float) -> float:
    """Share of the peak learning rate: a straight rise, then half a cosine down to `FINAL`."""
    if progress < WARMUP:
        return (progress + 0.01) / (WARMUP + 0.01)  # not 0, so that the first step counts
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def batch_loss(model: LanguageModel, batch: Batch, device: str) -> tuple[Tensor, int]:
    """Losses in nats of each token of a batch (B, L), and the number of tokens among them."""
    tokens = torch.from_numpy(batch.tokens).to(device)
    neighbours = None if batch.neighbours is None else torch.from_numpy(batch.neighbours).to(device)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=device.startswith("cuda")):
        logits = model(tokens, neighbours)
    pad_token = model.config.pad_token
    return token_losses(logits, tokens, pad_token), int((batch.tokens != pad_token).sum())


def check_fit(config: RetroConfig, data: RetroData, tokenizer: str | None = None) -> None:
    """Refuses data that the model cannot read, or whose tokens it never learned (`tokenizer`, when given).

    Raises:
        MismatchError: naming both sides.
    """
    wanted = {"chunk_tokens": config.chunk_tokens, "vocab_size": config.vocab_size, "tokenizer": tokenizer}
    for name, value in wanted.items():
        if value is not None and value != getattr(data, name):
            what = f"the model has {name} {value}, the data {getattr(data, name)}"
            raise MismatchError(
                what, remedy="Use the database that the model was trained on, or one with its tokenizer."
            )
    if data.neighbours.shape[1] < config.k:
        what = f"the model reads {config.k} neighbours, the table has {data.neighbours.shape[1]}"
        raise MismatchError(what, remedy=f"Run 'retrodb neighbours DB --k {config.k}'.")


def _endless(data: RetroData, config: RetroConfig, batch_chunks: int) -> Iterator[Batch]:
    windows = data.windows(config.num_chunks, stride=config.num_chunks)
    for epoch in count():
        yield from data.batches(windows, batch_chunks, config.k, (config.seed, epoch))


def _optimiser(model: nn.Module) -> torch.optim.AdamW:
    trained = _trained(model).values()
    groups = [
        {"params": [weight for weight in trained if weight.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in trained if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_checkpoint(trained: TrainedModel, folder: Path) -> None:
    """Writes `model.safetensors`, the weights that were trained, and `config.json` into a folder that exists."""
    card = {"config": asdict(trained.model.config), "tokenizer": trained.tokenizer, "tokens_seen": trained.tokens_seen}
    card |= {"progress": trained.progress, "losses": trained.losses}
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in _trained(trained.model).items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(card, indent=1))


def load_checkpoint(folder: Path, build: Callable[[RetroConfig], LanguageModel] = RetroModel) -> TrainedModel:
    """The trained model in `folder`.

    Args:
        build: makes the untrained model; for a RETROfit `lambda config: RetroFit(base, config)`.

    Raises:
        MissingFileError: for a folder without a checkpoint.
        InputError: for files that are no checkpoint or do not belong together.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise MissingFileError("no such file", where=str(folder / name), remedy="Run 'retrodb retro train'.")
    try:
        card = json.loads((folder / "config.json").read_bytes())
        model = build(RetroConfig(**card["config"] | {"cross_layers": tuple(card["config"]["cross_layers"])}))
        weights = load_file(folder / "model.safetensors")
        if weights.keys() != _trained(model).keys():
            raise KeyError("the weights are those of another model")
        model.load_state_dict(weights, strict=False)  # what was not trained is not there
        record = tuple(card["progress"]), tuple(card["losses"]), int(card["tokens_seen"])
        return TrainedModel(model.eval(), card["tokenizer"], *record)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        what = f"not a checkpoint of this retrodb ({error})"
        raise InputError(what, where=str(folder), remedy="Train again with 'retrodb retro train'.") from error
