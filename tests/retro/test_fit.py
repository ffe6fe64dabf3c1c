from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from retrodb.errors import InputError, MismatchError
from retrodb.retro.checkpoint import CARD, load_checkpoint, load_unfinished, save_checkpoint, save_unfinished
from retrodb.retro.evaluate import chunk_bits
from retrodb.retro.fit import RetroFit, fit_config, weights_fingerprint
from retrodb.retro.training import UnfinishedTraining, schedule_by_steps, train_model

from .synthetic import near_copies

M = 8


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(shape).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(shape).eval()


def fitted(base: nn.Module) -> RetroFit:
    return RetroFit(base, replace(fit_config(base, chunk_tokens=M, k=1), learning_rate=3e-3))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_before_training_it_is_exactly_the_base(make: type[nn.Module]) -> None:
    base = make()
    tokens, neighbours = torch.randint(64, (2, 4 * M)), torch.randint(64, (2, 4, 1, 2 * M))
    expected = base(tokens).logits
    model = fitted(base).eval()
    assert torch.equal(model(tokens), expected)
    torch.testing.assert_close(model(tokens, neighbours), expected)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_only_the_added_weights_are_trained_and_they_learn_from_neighbours(
    make: type[nn.Module], tmp_path: Path
) -> None:
    base, data = make(), near_copies(60, m=M, vocab=64)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    trained = train_model(fitted(base), data, schedule_by_steps(80), batch_chunks=16)
    assert all(torch.equal(before[name], weight) for name, weight in base.state_dict().items())
    on, off = chunk_bits(trained, data), chunk_bits(trained, data.without())
    assert on.sum() < off.sum()
    save_checkpoint(trained, tmp_path)
    loaded = load_checkpoint(tmp_path, lambda config: RetroFit(make(), config))
    assert (chunk_bits(loaded, data) == on).all()
    with pytest.raises(MismatchError, match=f"RETROfit of the base {trained.model.base_fingerprint}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_checkpoint_refuses_every_other_base(make: type[nn.Module], tmp_path: Path) -> None:
    """Whichever of its weights differs, and by however little; the same base in another precision is no other base."""
    trained = train_model(fitted(make()), near_copies(20, m=M, vocab=64), schedule_by_steps(2), batch_chunks=16)
    save_checkpoint(trained, tmp_path)
    fingerprint = trained.model.base_fingerprint
    for name in make().state_dict():
        other = make()
        with torch.no_grad():
            weight = other.state_dict()[name].view(-1)
            weight[-1] = weight[-1] + 1e-3
        with pytest.raises(MismatchError, match=f"{fingerprint}, the given base is {weights_fingerprint(other)}"):
            load_checkpoint(tmp_path, lambda config, other=other: RetroFit(other, config))
    assert weights_fingerprint(make().to(torch.float64)) == fingerprint
    with pytest.raises(MismatchError, match="the given base is"):
        load_checkpoint(tmp_path, lambda config: RetroFit(llama() if make is gpt2 else gpt2(), config))


def test_an_unfinished_training_refuses_another_base(tmp_path: Path) -> None:
    states: list[UnfinishedTraining] = []
    train_model(
        fitted(gpt2()),
        near_copies(20, m=M, vocab=64),
        schedule_by_steps(4),
        batch_chunks=16,
        save=states.append,
        save_every=2,
    )
    save_unfinished(states[0], tmp_path)
    assert load_unfinished(tmp_path, lambda config: RetroFit(gpt2(), config)) is not None
    other = gpt2()
    with torch.no_grad():
        next(iter(other.parameters())).add_(1.0)
    with pytest.raises(MismatchError, match="the given base is"):
        load_unfinished(tmp_path, lambda config: RetroFit(other, config))


def test_a_checkpoint_without_a_recorded_base_takes_the_given_one(tmp_path: Path) -> None:
    trained = train_model(fitted(gpt2()), near_copies(20, m=M, vocab=64), schedule_by_steps(2), batch_chunks=16)
    save_checkpoint(trained, tmp_path)
    card = json.loads((tmp_path / CARD).read_bytes())
    del card["base"]
    (tmp_path / CARD).write_text(json.dumps(card))
    load_checkpoint(tmp_path, lambda config: RetroFit(gpt2(), config))


def test_an_added_neighbour_is_seen_causally() -> None:
    model = fitted(gpt2()).eval()
    nn.init.normal_(model.cross[0].attention.out.weight)  # type: ignore[union-attr, arg-type]
    tokens, neighbours = torch.randint(64, (1, 4 * M)), torch.randint(64, (1, 4, 1, 2 * M))
    other = neighbours.clone()
    other[:, 1] = (other[:, 1] + 1) % 64
    changed = (model(tokens, neighbours) - model(tokens, other)).abs().amax(dim=(0, 2)) > 1e-6
    assert int(changed.nonzero()[0]) == 2 * M - 1


def test_a_base_without_layers_is_refused() -> None:
    base = gpt2()
    config = replace(fit_config(base, chunk_tokens=M, k=1), layers=9)
    with pytest.raises(InputError, match="no list of 9 layers"):
        RetroFit(base, config)
