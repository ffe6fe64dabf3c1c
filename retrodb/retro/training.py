"""Trains a model on a neighbour table.

The length of a training is a schedule: an iterable with the progress from 0 to 1 before each step. `schedule_by_steps` and
`schedule_by_clock` make one. The recorded progress of an earlier training repeats its schedule exactly, so that two models see
the same number of tokens.
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
from retrodb.retro.data import RetroData, SequenceBatch
from retrodb.retro.model import LanguageModel
from retrodb.retro.model_config import RetroConfig

WARMUP_FRACTION = 0.05  # of the training, in which the learning rate rises
FINAL_FRACTION = 0.1  # of the peak learning rate, at the end
WEIGHT_DECAY = 0.1  # of matrices only
EMBEDDING_RATE = 4.0  # learning rate of the embedding divided by that of other weights
BATCH_CHUNKS = 64  # 4,096 tokens per step
SAVE_EVERY = 200  # steps between two saved states, from which a killed training can continue
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class TrainedModel:
    """A model with the record of its training."""

    model: LanguageModel
    tokenizer: str  # digest of the tokenizer of the training data
    progress: tuple[float, ...]  # the schedule that was followed, one number per step
    losses: tuple[float, ...]  # of each step, nats per token
    tokens_seen: int  # without padding
    encoder: str = ""  # fingerprint of the encoder that found the neighbours; "" for none, or when it is not known
    batch_chunks: int = 0  # approximate chunks per step


@dataclass(frozen=True)
class UnfinishedTraining:
    """A training that stopped between two steps, with everything that the next step needs."""

    trained: TrainedModel  # so far
    optimiser: dict[str, Tensor]  # "<moment>/<weight>" -> running average of AdamW


def schedule_by_steps(steps: int, done: int = 0) -> Iterator[float]:
    """Progress for a number of steps, of which some are done."""
    return (step / steps for step in range(done, steps))


def schedule_by_clock(seconds: float, clock: Callable[[], float], done: float = 0.0) -> Iterator[float]:
    """Progress by a clock such as `time.monotonic`, for about this many seconds.

    Args:
        done: the progress of an earlier training that this one continues.
    """
    start = clock() - done * seconds
    while (progress := (clock() - start) / seconds) < 1.0:
        yield progress


def train_model(
    model: LanguageModel,
    data: RetroData,
    schedule: Iterable[float],
    *,
    batch_chunks: int = BATCH_CHUNKS,
    device: str = "cpu",
    on_step: Callable[[int, float, float], None] = lambda step, loss, progress: None,
    resume: UnfinishedTraining | None = None,
    save: Callable[[UnfinishedTraining], None] | None = None,
    save_every: int = SAVE_EVERY,
) -> TrainedModel:
    """Trains the weights of `model` that require gradients, in place, by AdamW with warm-up and cosine decay.

    The result depends only on the model, the data, the schedule and the batch size, on one kind of machine: the order of the
    batches comes from the configuration's seed. Queries without any neighbour train as without retrieval.

    Args:
        schedule: progress before each step, see the module. When resuming, of the remaining steps.
        batch_chunks: approximate chunks per step.
        device: any of PyTorch. On CUDA the arithmetic is bfloat16.
        on_step: called after each step with its number, its loss in nats per token, and the progress before it.
        resume: a training of the same model, data and batch size to continue, as if it had never stopped.
        save: called every `save_every` steps with a value for `resume`.

    Raises:
        InputError: when the data has no query chunks.
        MismatchError: when the chunks, vocabulary or neighbours of the data do not fit the model.
    """
    _keep_freed_memory()
    check_compatible(model.config, data)
    if not len(data.query_tokens):
        raise InputError("no query chunks to train on", remedy="Ingest documents first.")
    if resume is None:
        model.start_from_frequencies(torch.from_numpy(data.token_counts(model.config.vocab_size)))
    model.to(device).train()
    optimiser = _optimiser(model)
    before = resume.trained if resume else TrainedModel(model, data.tokenizer, (), (), 0, data.encoder, batch_chunks)
    if resume is not None:
        _restore(optimiser, model, resume.optimiser)
    steps, losses, tokens_seen = [*before.progress], [*before.losses], before.tokens_seen

    def trained_so_far() -> TrainedModel:
        return replace(before, progress=tuple(steps), losses=tuple(losses), tokens_seen=tokens_seen)

    batches = _endless_batches(data, model.config, batch_chunks, skip=len(steps))
    with torch.random.fork_rng():
        for progress, batch in zip(schedule, batches, strict=False):
            # Of dropout: a seed for every step, so that a training can continue at any of them.
            torch.manual_seed(model.config.seed + (len(steps) << 32))
            loss, num_tokens = _train_step(model, batch, optimiser, progress, device)
            steps.append(progress)
            losses.append(loss)
            tokens_seen += num_tokens
            on_step(len(steps) - 1, loss, progress)
            if save is not None and len(steps) % save_every == 0:
                save(UnfinishedTraining(trained_so_far(), _moments(optimiser, model)))
    model.eval()
    return trained_so_far()


def _train_step(
    model: LanguageModel, batch: SequenceBatch, optimiser: torch.optim.AdamW, progress: float, device: str
) -> tuple[float, int]:
    """Changes the weights by one step. Returns the loss in nats per token, and the number of tokens."""
    for group in optimiser.param_groups:
        group["lr"] = group["rate"] * model.config.learning_rate * learning_rate_fraction(progress)
    num_tokens = int((batch.tokens != model.config.pad_token).sum())
    loss = batch_loss(model, batch, device)[0] / num_tokens
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item(), num_tokens


def _keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks instead of returning them to the system.

    Every step allocates and frees the same logits (tokens x vocabulary). To get their pages from the system each time took two
    fifths of the training's CPU time at a vocabulary of 16,000.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def learning_rate_fraction(progress: float) -> float:
    """Fraction of the peak learning rate: a linear rise, then half a cosine down to `FINAL_FRACTION`."""
    if progress < WARMUP_FRACTION:
        return (progress + 0.01) / (WARMUP_FRACTION + 0.01)  # not 0, so that the first step counts
    decay = (progress - WARMUP_FRACTION) / (1 - WARMUP_FRACTION)
    return FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + math.cos(math.pi * decay))


def batch_loss(model: LanguageModel, batch: SequenceBatch, device: str) -> tuple[Tensor, Tensor]:
    """As `LanguageModel.loss`, for a batch in the memory of the host."""
    tokens = torch.from_numpy(batch.tokens).to(device)
    neighbours = None if batch.neighbours is None else torch.from_numpy(batch.neighbours).to(device)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=device.startswith("cuda")):
        return model.loss(tokens, neighbours)


def check_compatible(config: RetroConfig, data: RetroData, tokenizer: str | None = None) -> None:
    """Refuses data that the model cannot read, or that has another tokenizer than the given one.

    Raises:
        MismatchError: names both values.
    """
    expected = {"chunk_tokens": config.chunk_tokens, "vocab_size": config.vocab_size, "tokenizer": tokenizer}
    for name, value in expected.items():
        if value is not None and value != getattr(data, name):
            what = f"the model has {name} {value}, the data {getattr(data, name)}"
            raise MismatchError(
                what, remedy="Use the database that the model was trained on, or one with its tokenizer."
            )
    if data.neighbours.shape[1] < config.k:
        what = f"the model reads {config.k} neighbours, the table has {data.neighbours.shape[1]}"
        raise MismatchError(what, remedy=f"Run 'retrodb neighbours DB --k {config.k}'.")


def _endless_batches(data: RetroData, config: RetroConfig, batch_chunks: int, skip: int) -> Iterator[SequenceBatch]:
    for epoch in count():
        for windows, chosen in data.order(config.num_chunks, config.num_chunks, batch_chunks, (config.seed, epoch)):
            if skip:
                skip -= 1
            else:
                yield data.batch(windows, chosen, config.k)


def _optimiser(model: nn.Module) -> torch.optim.AdamW:
    """Embeddings get a higher learning rate, because a rare token occurs in few steps."""
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
    """The optimiser's state of every weight that has one."""
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
