from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from retrodb.errors import InputError
from retrodb.retro.checkpoint import load_checkpoint, save_checkpoint
from retrodb.retro.evaluate import chunk_bits
from retrodb.retro.fit import RetroFit, fit_config
from retrodb.retro.training import schedule_by_steps, train_model

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
    with pytest.raises(InputError, match="the weights are those of another model"):
        load_checkpoint(tmp_path)


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
