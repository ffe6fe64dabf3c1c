"""Trains a model on a neighbour table, and keeps what was trained.

How long is an iterable of progress, from 0 to 1, one number a step: `by_steps` and `by_clock` make one, and the progress of an
earlier training replays its very schedule, which is how two models come to see equal tokens.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn

from retrodb.errors import InputError, MismatchError
from retrodb.retro.config import RetroConfig
from retrodb.retro.data import Batch, RetroData
from retrodb.retro.model import LanguageModel

WARMUP = 0.05  # share of the training in which the learning rate rises
FINAL = 0.1  # share of the peak learning rate that is left at the end
WEIGHT_DECAY = 0.1  # of matrices only
EMBEDDING_RATE = 4.0  # learning rate of the embedding against that of other weights
BATCH_CHUNKS = 64  # 4,096 tokens a step
SAVE_EVERY = 200  # steps between two states that a killed training can continue from
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class TrainedModel:
    """A model with the record of its training."""

    model: LanguageModel
    tokenizer: str  # digest of the tokenizer whose tokens it learned
    progress: tuple[float, ...]  # the schedule that was followed, one number a step
    losses: tuple[float, ...]  # of each step, nats per token
    tokens_seen: int  # without padding
    encoder: str = ""  # fingerprint of the encoder that found its neighbours; "" when none did, or it is not known
    batch_chunks: int = 0  # chunks a step, about


@dataclass(frozen=True)
class Unfinished:
    """A training that stopped between two steps, with all that the next one needs."""

    so_far: TrainedModel
    optimiser: dict[str, Tensor]  # "<moment>/<weight>" -> AdamW's running averages


def by_steps(steps: int, done: int = 0) -> Iterator[float]:
    """Progress for so many steps, of which some are done."""
    return (step / steps for step in range(done, steps))


def by_clock(seconds: float, clock: Callable[[], float], done: float = 0.0) -> Iterator[float]:
    """Progress by the time that `clock` tells (`time.monotonic`), ending after about so many seconds.

    Args:
        done: the progress of an earlier training that this one continues.
    """
    start = clock() - done * seconds
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
    resume: Unfinished | None = None,
    save: Callable[[Unfinished], None] | None = None,
    save_every: int = SAVE_EVERY,
) -> TrainedModel:
    """Trains the weights of `model` that require gradients, in place, by AdamW with warm-up and cosine decay.

    The result is a function of the model, the data, the progress and the batch size (on one kind of machine): the order of the
    batches comes from the configuration's seed. Queries without any neighbour train as without retrieval.

    Args:
        progress: share of the training done before each step; see the module. When resuming, of the steps that are left.
        batch_chunks: chunks a step, about.
        device: any of PyTorch's; on CUDA the arithmetic is bfloat16.
        on_step: called after each step with its number, its loss in nats per token, and the progress before it.
        resume: a training of the same model, data and batch size to continue, as if it had never stopped.
        save: called every `save_every` steps with what `resume` takes.

    Raises:
        InputError: when there is nothing to train on.
        MismatchError: when the data's chunks, vocabulary or neighbours do not fit the model.
    """
    _keep_freed_memory()
    check_fit(model.config, data)
    if not len(data.query_tokens):
        raise InputError("no query chunks to train on", remedy="Ingest documents first.")
    if resume is None:
        model.start_from(torch.from_numpy(data.token_counts(model.config.vocab_size)))
    model.to(device).train()
    optimiser = _optimiser(model)
    before = resume.so_far if resume else TrainedModel(model, data.tokenizer, (), (), 0, data.encoder, batch_chunks)
    if resume is not None:
        _restore(optimiser, model, resume.optimiser)
    steps, losses, tokens_seen = [*before.progress], [*before.losses], before.tokens_seen

    def now() -> TrainedModel:
        return replace(before, progress=tuple(steps), losses=tuple(losses), tokens_seen=tokens_seen)

    with torch.random.fork_rng():
        for share, batch in zip(progress, _endless(data, model.config, batch_chunks, skip=len(steps)), strict=False):
            torch.manual_seed(model.config.seed + (len(steps) << 32))  # of dropout, so that any step can be the first
            for group in optimiser.param_groups:
                group["lr"] = group["rate"] * model.config.learning_rate * learning_rate(share)
            num_tokens = int((batch.tokens != model.config.pad_token).sum())
            loss = batch_loss(model, batch, device)[0] / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            steps.append(share)
            losses.append(loss.item())
            tokens_seen += num_tokens
            on_step(len(steps) - 1, losses[-1], share)
            if save is not None and len(steps) % save_every == 0:
                save(Unfinished(now(), _moments(optimiser, model)))
    model.eval()
    return now()


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


def batch_loss(model: LanguageModel, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
    """As `LanguageModel.loss`, of a batch on the host."""
    tokens = torch.from_numpy(batch.tokens).to(device)
    neighbours = None if batch.neighbours is None else torch.from_numpy(batch.neighbours).to(device)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=device.startswith("cuda")):
        return model.loss(tokens, neighbours)


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


def _endless(data: RetroData, config: RetroConfig, batch_chunks: int, skip: int) -> Iterator[Batch]:
    windows = data.windows(config.num_chunks, stride=config.num_chunks)
    for epoch in count():
        order = data.order(windows, batch_chunks, (config.seed, epoch))
        yield from (data.batch(windows, chosen, config.k) for chosen in order[skip:])
        skip = max(0, skip - len(order))


def _optimiser(model: nn.Module) -> torch.optim.AdamW:
    """Rare tokens have few steps in which to learn, so their embeddings take larger ones."""
    weights = trained_weights(model)
    embedding = [weight for name, weight in weights.items() if name == "embedding.weight"]
    others = [weight for name, weight in weights.items() if name != "embedding.weight"]
    groups = [
        {"params": embedding, "weight_decay": 0.0, "rate": EMBEDDING_RATE},
        {"params": [weight for weight in others if weight.dim() >= 2], "weight_decay": WEIGHT_DECAY, "rate": 1.0},
        {"params": [weight for weight in others if weight.dim() < 2], "weight_decay": 0.0, "rate": 1.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95), fused=True)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training changes, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _moments(optimiser: torch.optim.AdamW, model: LanguageModel) -> dict[str, Tensor]:
    """The optimiser's state of every weight that was moved yet."""
    return {
        f"{moment}/{name}": tensor
        for name, weight in trained_weights(model).items()
        for moment, tensor in optimiser.state.get(weight, {}).items()
    }


def _restore(optimiser: torch.optim.AdamW, model: LanguageModel, moments: dict[str, Tensor]) -> None:
    weights = trained_weights(model)
    for key, tensor in moments.items():
        moment, name = key.split("/", 1)
        optimiser.state[weights[name]][moment] = tensor.to(weights[name].device)
