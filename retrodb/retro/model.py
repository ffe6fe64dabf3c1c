"""The RETRO model of Borgeaud et al. 2022, section 2.4 and appendix B.1, in one file.

    tokens ── decoder layer ── decoder layer with chunked cross-attention ── ... ── logits
                    │                        │
                    └── activations of chunk u ── encoder ── neighbours of chunk u, encoded

Shapes: B sequences; L = l m tokens in l chunks of m; k neighbours of r = 2 m tokens; W width, E width of the encoder;
V vocabulary. Deviations from the paper: rotary positions in place of learned relative ones, GELU, and an output embedding that is
tied to the input's. Because this model is trained for minutes only, cross-attention starts with weights that would take long to
learn: it finds the token just read in the neighbours and proposes the token after it (`ChunkedCrossAttention.init_as_copy`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrodb.retro.model_config import RetroConfig


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """`x` (..., T, head width) rotated by its positions (T,), so that products depend on distances only (RoFormer)."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device) / half)
    angles = positions[:, None] * frequencies  # (T, head width / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Attention(nn.Module):
    """Attention of x over a context (over itself when the context is x), with rotary positions for both."""

    def __init__(self, config: RetroConfig, width: int, context_width: int) -> None:
        super().__init__()
        self.heads, self.base = config.heads, config.rotary_base
        inner = config.heads * config.head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(context_width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        x: Tensor,  # (B, T, width)
        context: Tensor,  # (B, S, context width)
        positions: tuple[Tensor, Tensor],  # (T,) of x and (S,) of the context
        is_present: Tensor | None = None,  # (B, S) bool: which context tokens may be seen
        causal: bool = False,
        shift_within: int = 0,  # when above 0, a key comes with the value of the next position, in groups of this size
    ) -> Tensor:  # (B, T, width)
        query = self._split(self.query(x))
        key, value = (self._split(part) for part in self.key_value(context).chunk(2, dim=-1))
        if shift_within:
            value = value.view(
                *value.shape[:2], -1, shift_within, value.shape[-1]
            )  # (B, heads, groups, shift_within, head width)
            value = torch.cat((value[..., 1:, :], value[..., -1:, :]), dim=-2).flatten(2, 3)
        query, key = rotate(query, positions[0], self.base), rotate(key, positions[1], self.base)
        mask = None
        if is_present is not None:
            # A row that may see nothing would give 0/0. It sees everything instead, and the caller drops the result.
            mask = (is_present | ~is_present.any(dim=-1, keepdim=True))[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, heads, T, head width)


def feed_forward_layers(width: int) -> nn.Sequential:
    """A layer that normalises, one that is four times as wide, and one back to the width: (..., width) -> (..., width)."""
    return nn.Sequential(
        nn.RMSNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class NeighbourEncoder(nn.Module):
    """Reads neighbours in both directions, conditioned on the chunk that retrieved them."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.dropout = config.dropout
        self.project = nn.Identity() if width == config.width else nn.Linear(config.width, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(config.encoder_layers))
        self.attentions = nn.ModuleList(Attention(config, width, width) for _ in range(config.encoder_layers))
        self.feeds = nn.ModuleList(feed_forward_layers(width) for _ in range(config.encoder_layers))
        # The paper conditions in the first layer only (P_enc = 1).
        self.chunk_norm, self.query_norm = nn.RMSNorm(config.width), nn.RMSNorm(width)
        self.condition = Attention(config, width, config.width)
        self.final_norm = nn.RMSNorm(width)

    def forward(self, embedded: Tensor, is_present: Tensor, h: Tensor) -> Tensor:
        """`embedded` (B, l, k, r, W) neighbours, `is_present` (B, l, k, r), `h` (B, L, W) -> (B l, k r, E)."""
        B, chunks, k, r, _ = embedded.shape
        x = self.project(embedded).view(B * chunks * k, r, -1)
        in_neighbour = torch.arange(r, device=h.device)
        retrieving = self.chunk_norm(h).view(B * chunks, -1, h.shape[-1])  # (B l, m, W)
        in_chunk = torch.arange(retrieving.shape[1], device=h.device)
        for i, (norm, attention, feed) in enumerate(zip(self.norms, self.attentions, self.feeds, strict=True)):
            y = norm(x)
            x = x + self._drop(attention(y, y, (in_neighbour, in_neighbour), is_present.view(B * chunks * k, r)))
            if i == 0:
                y = self.query_norm(x).view(B * chunks, k * r, -1)  # all neighbours of one chunk look at it together
                y = self.condition(y, retrieving, (in_neighbour.repeat(k), in_chunk))
                x = x + self._drop(y).view_as(x)
            x = x + self._drop(feed(x))
        return self.final_norm(x).view(B * chunks, k * r, -1)  # type: ignore[no-any-return]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


MATCH = 12.0  # initial logit of an equal token; rotary positions reduce it with the distance
COPY = 2.0  # initial scale of a copied value; token embeddings have scale 1


class ChunkedCrossAttention(nn.Module):
    """Lets each token see the neighbours of the chunks that are complete when the token is read (section 2.4).

    The last token of chunk u and the first m - 1 of chunk u + 1 form attending chunk u, which sees the neighbours of
    chunk u. So the first m - 1 tokens of a sequence see none, and no token sees what its own future retrieved.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.chunk_tokens = config.chunk_tokens
        self.norm = nn.RMSNorm(config.width)
        self.attention = Attention(config, config.width, config.encoder_width)

    def init_as_copy(self) -> None:
        """Sets the weights to multiples of the identity: equal tokens attend to each other, and values pass unchanged.

        Because the output embedding is tied to the input's, a value that passes raises the probability of its token.
        """
        attention = self.attention
        key, value = attention.key_value.weight.chunk(2)
        match = (
            MATCH / (len(key) / attention.heads) ** 0.5
        ) ** 0.5  # of query and key: a head's logits are over its root
        for weight, scale in [
            (attention.query.weight, match),
            (key, match),
            (value, 1.0),
            (attention.out.weight, COPY),
        ]:
            with torch.no_grad():
                weight.copy_(scale * torch.eye(*weight.shape))

    def forward(self, h: Tensor, encoded: Tensor, is_present: Tensor) -> Tensor:
        """`h` (B, L, W), `encoded` (B l, k r, E), `is_present` (B, l, k, r) -> what to add to h (B, L, W)."""
        B, L, W = h.shape
        m, k, r = self.chunk_tokens, *is_present.shape[2:]
        is_present = is_present.view(-1, k * r)  # (B l, k r)
        attending = F.pad(self.norm(h)[:, m - 1 :], (0, 0, 0, m - 1)).view(-1, m, W)  # (B l, m, W)
        # A neighbour's chunk is at 0..m-1 and its continuation at m and later. A query continues where its chunk ended, so
        # in a near-copy the next token is always one to the right.
        positions = torch.arange(m - 1, 2 * m - 1, device=h.device), torch.arange(r, device=h.device).repeat(k)
        out = self.attention(attending, encoded, positions, is_present, shift_within=r)
        out = out * is_present.any(dim=-1)[:, None, None]  # a chunk without neighbours adds an exact 0
        return F.pad(out.view(B, L, W), (0, 0, m - 1, 0))[:, :L]


class DecoderLayer(nn.Module):
    """Causal self-attention, chunked cross-attention where the layer has it, feed-forward."""

    def __init__(self, config: RetroConfig, number: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm = nn.RMSNorm(config.width)
        self.attention = Attention(config, config.width, config.width)
        self.cross = ChunkedCrossAttention(config) if number in config.cross_layers else None
        self.feed = feed_forward_layers(config.width)

    def attend(self, h: Tensor) -> Tensor:
        x, positions = self.norm(h), torch.arange(h.shape[1], device=h.device)
        return h + F.dropout(self.attention(x, x, (positions, positions), causal=True), self.dropout, self.training)

    def retrieve(self, h: Tensor, encoded: Tensor, is_present: Tensor) -> Tensor:
        assert self.cross is not None
        return h + F.dropout(self.cross(h, encoded, is_present), self.dropout, self.training)

    def feed_forward(self, h: Tensor) -> Tensor:
        return h + F.dropout(self.feed(h), self.dropout, self.training)


class LanguageModel(nn.Module):
    """A model that can be trained, evaluated and generate text: logits (B, L, V) of tokens (B, L) and neighbours (B, l, k, r)."""

    config: RetroConfig

    @property
    def base_fingerprint(self) -> str:
        """Of the weights that are not trained, which a checkpoint does not hold; "" when there are none."""
        return ""

    def loss(self, tokens: Tensor, neighbours: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sum of a batch's losses in nats, which has gradients, and the loss of every token (B, L), which has none."""
        losses = token_losses(self(tokens, neighbours), tokens, self.config.pad_token)
        return losses.sum(), losses.detach()

    def start_from_frequencies(self, counts: Tensor) -> None:
        """Takes the count of each token (V,) before training. A model that knows its language already ignores it."""


class RetroModel(LanguageModel):
    """A RETRO language model; without neighbours the same weights are a plain decoder."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.embedding = nn.Embedding(config.vocab_size + 1, config.width)
            layers = (DecoderLayer(config, number + 1) for number in range(config.layers))
            self.layers: Iterable[DecoderLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
            self.encoder = NeighbourEncoder(config)
            self.final_norm = nn.RMSNorm(config.width)
            initialise_weights(self, config.layers)
        for layer in self.layers:
            if layer.cross is not None:
                layer.cross.init_as_copy()
        self.frequency = nn.Parameter(
            torch.zeros(config.vocab_size)
        )  # output bias: log odds of each token in any context

    def forward(self, tokens: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of each next token.

        Args:
            tokens: (B, L) int64, L a multiple of m; `config.pad_token` past the end of a document.
            neighbours: (B, l, k, r) int64, `config.pad_token` where there is nothing; None turns retrieval off.
        """
        return F.linear(self._read(tokens, neighbours), self._unembedding, self.frequency)

    def start_from_frequencies(self, counts: Tensor) -> None:
        """Sets the output bias to the frequencies, so that training does not spend steps on them."""
        with torch.no_grad():
            self.frequency.copy_(((counts + 0.1) / (counts + 0.1).sum()).log())

    def loss(self, tokens: Tensor, neighbours: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `LanguageModel.loss`, without the logits of a whole batch in memory."""
        targets = tokens[:, 1:]
        is_target = targets != self.config.pad_token
        h = self._read(tokens, neighbours)[:, :-1][is_target]  # (T, W)
        arguments = h, self._unembedding, self.frequency, targets[is_target]
        total, losses_T = SoftmaxLoss.apply(*arguments)  # type: ignore[no-untyped-call]
        first = _first_losses(tokens, self.config.vocab_size, self.config.pad_token)
        losses = torch.zeros(tokens.shape, device=tokens.device)
        losses[:, :1] = first
        losses[:, 1:][is_target] = losses_T
        return total + first.sum(), losses

    def _embed(self, tokens: Tensor) -> Tensor:
        """(...,) -> (..., W), scaled to size 1 as normalised activations are."""
        return self.embedding(tokens) * self.config.width**0.5  # type: ignore[no-any-return]

    @property
    def _unembedding(self) -> Tensor:
        return self.embedding.weight[: self.config.vocab_size]

    def _read(self, tokens: Tensor, neighbours: Tensor | None) -> Tensor:
        """The last activations (B, L, W)."""
        h = self._embed(tokens)
        encoded = None
        for layer in self.layers:
            h = layer.attend(h)
            if neighbours is not None and layer.cross is not None:
                if encoded is None:  # conditioned on the activations that the first cross-attention sees
                    is_present = neighbours != self.config.pad_token
                    encoded = self.encoder(self._embed(neighbours), is_present, h)
                h = layer.retrieve(h, encoded, is_present)
            h = layer.feed_forward(h)
        return self.final_norm(h)  # type: ignore[no-any-return]


def initialise_weights(module: nn.Module, layers: int) -> None:
    """Draws normal weights that keep the size of activations, and smaller ones at the ends of residual branches."""
    for name, weight in module.named_parameters():
        if weight.requires_grad and weight.dim() == 2:
            is_end = name.endswith(("out.weight", "feed.3.weight"))
            gain = 1.0 if name == "embedding.weight" else 0.6
            nn.init.normal_(weight, std=gain * weight.shape[1] ** -0.5 / ((2 * layers) ** 0.5 if is_end else 1.0))


def token_losses(logits: Tensor, tokens: Tensor, pad_token: int) -> Tensor:
    """Cross-entropy in nats of every token given those before it: (B, L) float32, 0 where there is no token.

    The first token of a sequence has no context, so its loss is that of one of V equally likely tokens.
    """
    V = logits.shape[-1]
    # The last position predicts nothing. Slicing it off the logits would copy them, and they are by far the largest array.
    targets = F.pad(tokens[:, 1:], (0, 1), value=pad_token)
    losses = F.cross_entropy(
        logits.reshape(-1, V).float(), targets.reshape(-1), ignore_index=pad_token, reduction="none"
    )
    return torch.cat((_first_losses(tokens, V, pad_token), losses.view(len(tokens), -1)[:, :-1]), dim=1)


def _first_losses(tokens: Tensor, vocab_size: int, pad_token: int) -> Tensor:
    """(B, 1)"""
    return (tokens[:, :1] != pad_token) * torch.tensor(float(vocab_size), device=tokens.device).log()


class _Context(Protocol):
    """What `torch.autograd` passes between the two passes of a function; its own class does not declare all of it."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class SoftmaxLoss(torch.autograd.Function):
    """Cross-entropy of T activations with an output embedding, a block of them at a time.

    The forward pass computes the gradients too, while the logits of a block are in cache. With a vocabulary of 50,000 that
    more than halves the time on a CPU, where the logits of a whole batch would go to memory and back five times.
    """

    BLOCK = 512  # activations: with 50,257 tokens 100 MB of logits

    @staticmethod
    def forward(ctx: _Context, h: Tensor, embedding: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`h` (T, W), `embedding` (V, W), `bias` (V,), `targets` (T,) -> the sum of the losses in nats, and each of them (T,)."""
        losses = torch.empty(len(h), device=h.device)
        of_h, of_embedding, of_bias = torch.empty_like(h), torch.zeros_like(embedding), torch.zeros_like(bias)
        for start in range(0, len(h), SoftmaxLoss.BLOCK):
            block = slice(start, start + SoftmaxLoss.BLOCK)
            log_probabilities = F.log_softmax(F.linear(h[block], embedding, bias).float(), dim=1)  # (block, V)
            losses[block] = -log_probabilities.gather(1, targets[block, None])[:, 0]
            if any(ctx.needs_input_grad):
                slope = log_probabilities.exp_()
                slope[torch.arange(len(slope), device=h.device), targets[block]] -= 1
                of_h[block] = (slope @ embedding).to(h.dtype)
                of_embedding += slope.T @ h[block]
                of_bias += slope.sum(dim=0)
        ctx.save_for_backward(of_h, of_embedding, of_bias)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: _Context, slope: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of the arguments, from the gradient of the sum."""
        of_h, of_embedding, of_bias = ctx.saved_tensors
        return slope * of_h, slope * of_embedding, slope * of_bias, None
