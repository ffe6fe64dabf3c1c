from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retrodb.errors import InputError, MismatchError, MissingFileError
from retrodb.retro.checkpoint import load_checkpoint, save_checkpoint
from retrodb.retro.evaluate import chunk_bits
from retrodb.retro.model import RetroModel
from retrodb.retro.model_config import config_of_size
from retrodb.retro.training import TrainedModel, schedule_by_clock, schedule_by_steps, train_model

from .synthetic import near_copies

CONFIG = replace(config_of_size("tiny", 128), width=32, layers=1, cross_layers=(1,), encoder_width=32, k=1)
DATA = near_copies(20)


def trained(steps: int = 6, **changes: float) -> TrainedModel:
    return train_model(RetroModel(replace(CONFIG, **changes)), DATA, schedule_by_steps(steps), batch_chunks=16)  # type: ignore[arg-type]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_seed_and_steps_give_the_same_model(dropout: float) -> None:
    first, again = trained(dropout=dropout), trained(dropout=dropout)
    weights, others = first.model.state_dict(), again.model.state_dict()
    assert first.losses == again.losses
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_training_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    trained(2, dropout=0.2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_progress_by_the_clock_ends_in_time_and_can_be_replayed() -> None:
    ticks = iter(np.arange(0, 100, 0.7))
    bounded = train_model(RetroModel(CONFIG), DATA, schedule_by_clock(5, lambda: float(next(ticks))), batch_chunks=16)
    assert len(bounded.progress) == 7
    replayed = train_model(RetroModel(CONFIG), DATA.without(), bounded.progress, batch_chunks=16)
    assert replayed.progress == bounded.progress
    assert replayed.tokens_seen == bounded.tokens_seen


def test_every_step_is_reported() -> None:
    seen: list[tuple[int, float, float]] = []
    result = train_model(
        RetroModel(CONFIG),
        DATA,
        schedule_by_steps(4),
        batch_chunks=16,
        on_step=lambda step, loss, share: seen.append((step, loss, share)),
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert tuple(loss for _, loss, _ in seen) == result.losses


def test_a_checkpoint_restores_the_model(tmp_path: Path) -> None:
    first = trained()
    save_checkpoint(first, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert replace(loaded, model=first.model) == first
    assert loaded.model.config == first.model.config
    assert np.array_equal(chunk_bits(loaded, DATA), chunk_bits(first, DATA))


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"config\.json"):
        load_checkpoint(tmp_path)
    save_checkpoint(trained(1), tmp_path)
    card = json.loads((tmp_path / "config.json").read_text())
    for config in ({**card["config"], "width": 64}, {**card["config"], "colour": 3}):
        (tmp_path / "config.json").write_text(json.dumps(card | {"config": config}))
        with pytest.raises(InputError, match="not a checkpoint"):
            load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(card))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(tmp_path)


def test_data_that_does_not_fit_the_model_is_refused() -> None:
    for other, message in [
        (replace(DATA, vocab_size=9), "vocab_size 128, the data 9"),
        (near_copies(3, m=8), "chunk_tokens 16, the data 8"),
        (replace(DATA, neighbours=DATA.neighbours[:, :0]), "reads 1 neighbours, the table has 0"),
    ]:
        with pytest.raises(MismatchError, match=message):
            train_model(RetroModel(CONFIG), other, schedule_by_steps(1))
    with pytest.raises(MismatchError, match="tokenizer"):
        chunk_bits(trained(1), replace(DATA, tokenizer="another"))
    with pytest.raises(InputError, match="no query chunks"):
        train_model(RetroModel(CONFIG), DATA.sample(0, 0), schedule_by_steps(1))
