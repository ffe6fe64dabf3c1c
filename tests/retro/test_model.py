from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrodb.errors import ConfigError
from retrodb.retro.model import ChunkedCrossAttention, RetroModel, token_losses
from retrodb.retro.model import rotate as model_rotate
from retrodb.retro.model_config import SIZES, RetroConfig, config_of_size

CONFIG = replace(
    config_of_size("tiny", 50), chunk_tokens=4, num_chunks=4, layers=3, cross_layers=(2, 3), encoder_layers=2, k=2
)
M, L, CHUNKS, R = 4, 16, 4, 8


def made(config: RetroConfig = CONFIG) -> RetroModel:
    """A model whose every weight matters: at the start the ends of branches are near 0."""
    model = RetroModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.3)
    return model


def inputs(seed: int = 0, batch: int = 2, k: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (batch, L), generator=generator)
    return tokens, torch.randint(50, (batch, CHUNKS, k, R), generator=generator)


def changed_positions(a: Tensor, b: Tensor) -> set[int]:
    return set(torch.nonzero((a - b).abs().amax(dim=(0, 2)) > 1e-4).flatten().tolist())


def test_every_token_changes_only_later_logits() -> None:
    model, (tokens, neighbours) = made(), inputs()
    with torch.inference_mode():
        before = model(tokens, neighbours)
        for position in range(L):
            other = tokens.clone()
            other[:, position] = (other[:, position] + 1) % 50
            changed = changed_positions(model(other, neighbours), before)
            assert changed
            assert min(changed) == position


def test_every_neighbour_token_is_seen_from_the_last_token_of_its_chunk_on_and_no_earlier() -> None:
    model, (tokens, neighbours) = made(), inputs()
    with torch.inference_mode():
        before = model(tokens, neighbours)
        for chunk in range(CHUNKS):
            for slot in range(2):
                for position in range(R):
                    other = neighbours.clone()
                    other[:, chunk, slot, position] = (other[:, chunk, slot, position] + 1) % 50
                    assert min(changed_positions(model(tokens, other), before)) == (chunk + 1) * M - 1


def test_chunked_cross_attention_is_the_naive_loop_over_tokens() -> None:
    cross = ChunkedCrossAttention(CONFIG).eval()
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(2, L, CONFIG.width, generator=generator)
    encoded = torch.randn(2 * CHUNKS, 2 * R, CONFIG.encoder_width, generator=generator)
    is_present = torch.rand(2, CHUNKS, 2, R, generator=generator) < 0.6
    is_present[0, 1] = False
    attention, expected = cross.attention, torch.zeros_like(h)
    for b in range(2):
        for t in range(M - 1, L):
            u = (t + 1) // M - 1  # the last chunk that is complete when token t is read
            own, seen = encoded[b * CHUNKS + u], torch.nonzero(is_present[b, u].flatten()).flatten().tolist()
            if not seen:
                continue
            query = rotate(attention.query(cross.norm(h[b, t]))[None], torch.tensor([t - u * M]))
            keys = rotate(attention.key_value(own[seen]).chunk(2, dim=-1)[0], torch.tensor([j % R for j in seen]))
            following = [j if j % R == R - 1 else j + 1 for j in seen]  # a key's value is what follows in its neighbour
            values = attention.key_value(own[following]).chunk(2, dim=-1)[1]
            mixed = []
            for q, k, v in zip(*(each.chunk(CONFIG.heads, dim=-1) for each in (query, keys, values)), strict=True):
                scores = torch.stack([(q[0] * key).sum() for key in k]) / CONFIG.head_width**0.5
                mixed.append(sum(share * value for share, value in zip(scores.softmax(dim=0), v, strict=True)))
            expected[b, t] = attention.out(torch.cat(mixed))
    torch.testing.assert_close(cross(h, encoded, is_present), expected, atol=1e-5, rtol=1e-4)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """(T, heads * head width), every head turned by its position."""
    heads = x.unflatten(-1, (CONFIG.heads, -1)).transpose(0, 1)
    return model_rotate(heads, positions, CONFIG.rotary_base).transpose(0, 1).flatten(1)


def test_the_encoder_reads_in_both_directions_and_depends_on_the_chunk_that_retrieved() -> None:
    encoder, generator = made().encoder, torch.Generator().manual_seed(2)
    embedded = torch.randn(2, CHUNKS, 2, R, CONFIG.width, generator=generator)
    is_present = torch.ones(2, CHUNKS, 2, R, dtype=torch.bool)
    h = torch.randn(2, L, CONFIG.width, generator=generator)
    with torch.inference_mode():
        before = encoder(embedded, is_present, h).view(2, CHUNKS, 2, R, -1)
        for position in range(R):
            other = embedded.clone()
            other[0, 1, 0, position] += 1
            changed = (encoder(other, is_present, h).view_as(before) - before).abs().amax(dim=-1) > 1e-5
            assert changed[0, 1, 0].all(), "every position sees every other one of its neighbour"
            assert changed.sum() == R, "and none of another neighbour"
        for token in range(L):
            other = h.clone()
            other[0, token] += 1
            changed = (encoder(embedded, is_present, other).view_as(before) - before).abs().amax(dim=-1) > 1e-5
            assert changed[0, token // M].all(), "all neighbours of the chunk see it"
            assert changed.sum() == 2 * R, "and those of no other chunk"


def test_the_fused_loss_and_its_gradients_equal_those_of_the_logits() -> None:
    model, (tokens, neighbours) = made(), inputs()
    tokens[0, 9:] = CONFIG.pad_token
    expected = token_losses(model(tokens, neighbours), tokens, CONFIG.pad_token)
    expected.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    total, losses = model.loss(tokens, neighbours)
    total.backward()
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(total, expected.sum())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], atol=1e-3, rtol=1e-3)


def test_a_model_begins_at_the_frequencies_of_its_tokens() -> None:
    model = RetroModel(CONFIG)
    model.start_from_frequencies(torch.arange(50.0))
    assert model.frequency.softmax(dim=0)[40].item() == pytest.approx(40.1 / (49 * 25 + 5))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 1000))
def test_a_row_without_neighbours_is_exactly_the_plain_decoder(has: list[bool], seed: int) -> None:
    model, (tokens, neighbours) = made(), inputs(seed, batch=3)
    neighbours[[not it for it in has]] = CONFIG.pad_token
    with torch.inference_mode():
        on, off = model(tokens, neighbours), model(tokens)
    for row, has_any in enumerate(has):
        assert torch.equal(on[row], off[row]) != has_any


def test_a_missing_neighbour_next_to_a_present_one_changes_nothing() -> None:
    model, (tokens, neighbours) = made(), inputs()
    neighbours[:, :, 1] = CONFIG.pad_token
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens, neighbours), model(tokens, neighbours[:, :, :1]), atol=1e-4, rtol=1e-4)


def test_an_empty_neighbour_leaves_every_gradient_finite() -> None:
    model, (tokens, neighbours) = made(), inputs()
    neighbours[0] = CONFIG.pad_token
    neighbours[1, 2, 0] = CONFIG.pad_token
    token_losses(model(tokens, neighbours), tokens, CONFIG.pad_token).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_the_seed_alone_gives_the_weights() -> None:
    first, again, other = (
        RetroModel(replace(config_of_size("tiny", 50), seed=seed)).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_the_loss_covers_every_token_and_no_padding() -> None:
    tokens = torch.tensor([[3, 1, 4, 5], [2, 5, 5, 5]])  # 5 is padding
    losses = token_losses(torch.zeros(2, 4, 5), tokens, 5)
    assert torch.equal(losses > 0, tokens != 5)
    torch.testing.assert_close(losses[losses > 0], torch.full((4,), 5.0).log())


@pytest.mark.parametrize(("size", "millions"), [("2m", 2.2), ("20m", 20), ("170m", 156)])
def test_the_sizes_have_as_many_parameters_as_their_names_say(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = RetroModel(config_of_size(size, 10))
    counted = sum(weight.numel() for name, weight in model.named_parameters() if not name.startswith("embedding"))
    assert counted == pytest.approx(millions * 1e6, rel=0.05)


def test_an_invalid_model_is_refused_with_the_field_name() -> None:
    assert set(SIZES) == {"tiny", "2m", "20m", "170m"}
    with pytest.raises(ConfigError, match="no model size 'huge'"):
        config_of_size("huge", 10)
    for changes, message in [
        ({"width": 0}, "width is 0"),
        ({"head_width": 3}, "head_width is 3"),
        ({"cross_layers": (3,)}, "cross_layers"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            replace(config_of_size("tiny", 10), **changes)  # type: ignore[arg-type]
