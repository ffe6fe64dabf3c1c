"""Generates text with a trained model that retrieves after every finished chunk.

Shapes: m tokens a chunk, k neighbours of r = 2 m tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.retro.model_config import RetroConfig
from retrodb.retro.training import TrainedModel

# A finished chunk (m,) -> its neighbours [N, F] (k, r), the model's pad token where there is nothing (`RetroData.values`).
Retrieve = Callable[[Int64Array], Int64Array]


def generate_tokens(
    trained: TrainedModel,
    prompt: Sequence[int],
    max_tokens: int,
    retrieve: Retrieve | None = None,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> Iterator[int]:
    """Up to `max_tokens` tokens that continue `prompt`, one at a time.

    Args:
        prompt: token ids, at least one.
        retrieve: gives the neighbours of each finished chunk; None turns retrieval off.
        temperature: 0 always takes the likeliest token.
        top_k: tokens are drawn from this many of the likeliest.
        seed: of the draws.

    Raises:
        UsageError: for an empty prompt.
    """
    if not prompt:
        raise UsageError("an empty prompt", remedy="Give at least one token.")
    model, m = trained.model.cpu().eval(), trained.model.config.chunk_tokens
    generator = torch.Generator().manual_seed(seed)
    tokens, neighbours = list(prompt), list[Int64Array]()  # neighbours: (k, r) of each finished chunk
    for _ in range(max_tokens):
        if retrieve is not None:
            for start in range(len(neighbours) * m, len(tokens) - m + 1, m):
                neighbours.append(retrieve(np.array(tokens[start : start + m], dtype=np.int64)))
        # The oldest chunks are dropped when the sequence is full.
        first = max(0, -(-len(tokens) // m) - model.config.num_chunks)
        with torch.inference_mode():
            logits = model(*_inputs(model.config, tokens[first * m :], neighbours[first:]))
        tokens.append(_draw(logits[0, len(tokens) - first * m - 1], temperature, top_k, generator))
        yield tokens[-1]


def _inputs(
    config: RetroConfig, tokens: Sequence[int], neighbours: Sequence[Int64Array]
) -> tuple[Tensor, Tensor | None]:
    """Tokens (1, l m) and neighbours (1, l, k, r), padded to whole chunks."""
    chunks = -(-len(tokens) // config.chunk_tokens)
    padded = torch.full((1, chunks * config.chunk_tokens), config.pad_token)
    padded[0, : len(tokens)] = torch.tensor(tokens)
    if not neighbours:
        return padded, None
    values = torch.full((1, chunks, config.k, config.neighbour_tokens), config.pad_token)
    values[0, : len(neighbours)] = torch.from_numpy(np.stack(neighbours))
    return padded, values


def _draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    best = logits.float().topk(min(top_k, len(logits)))
    chosen = torch.multinomial(F.softmax(best.values / temperature, dim=-1), 1, generator=generator)
    return int(best.indices[chosen])
