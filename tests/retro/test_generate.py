from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrodb.errors import UsageError
from retrodb.retro.generate import generate_tokens
from retrodb.retro.model import RetroModel
from retrodb.retro.model_config import config_of_size
from retrodb.retro.training import TrainedModel

CONFIG = replace(config_of_size("tiny", 50), chunk_tokens=4, num_chunks=3, k=1)
MODEL = TrainedModel(RetroModel(CONFIG).eval(), "", (), (), 0)


def test_every_finished_chunk_is_looked_up_once() -> None:
    asked: list[list[int]] = []

    def retrieve(chunk: np.ndarray) -> np.ndarray:
        asked.append(chunk.tolist())
        return np.full((1, 8), CONFIG.pad_token)

    prompt = [1, 2, 3, 4, 5, 6]
    tokens = prompt + list(generate_tokens(MODEL, prompt, 15, retrieve))
    assert len(tokens) == 21
    assert asked == [tokens[at : at + 4] for at in range(0, 20, 4)]


def test_the_seed_gives_the_text_and_missing_neighbours_change_nothing() -> None:
    nothing = np.full((1, 8), CONFIG.pad_token)
    hot = 20.0  # an untrained model repeats what it read, unless it is made to draw
    first, again, other = (list(generate_tokens(MODEL, [7], 20, temperature=hot, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert list(generate_tokens(MODEL, [7], 20, lambda chunk: nothing, temperature=hot, seed=1)) == first
    assert list(generate_tokens(MODEL, [7], 9, temperature=0)) == list(generate_tokens(MODEL, [7], 9, top_k=1))


def test_neighbours_change_the_text() -> None:
    plain = list(generate_tokens(MODEL, [7], 40, seed=1))
    assert list(generate_tokens(MODEL, [7], 40, lambda chunk: np.arange(8)[None] + chunk[0] % 9, seed=1)) != plain


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="empty prompt"):
        next(generate_tokens(MODEL, [], 1))
