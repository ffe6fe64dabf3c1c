"""The RETRO model of Borgeaud et al. 2022, section 2.4 and appendix B.1, in one file.

    tokens ── decoder layer ── decoder layer with chunked cross-attention ── ... ── logits
                    │                        │
                    └── activations of chunk u ── encoder ── neighbours of chunk u, encoded

Shapes: B sequences; L = l m tokens in l chunks of m; k neighbours of r = 2 m tokens; W width, E width of the encoder;
V vocabulary. Deviations from the paper: rotary positions for learned relative ones, GELU, tied output embedding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrodb.retro.config import RetroConfig


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """`x` (..., T, head width) turned by its positions (T,), so that products depend on distances only (RoFormer)."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device) / half)
    angles = positions[:, None] * frequencies  # (T, head width / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


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
        is_present: Tensor | None = None,  # (B, S) bool: what of the context may be seen
        causal: bool = False,
    ) -> Tensor:  # (B, T, width)
        query = self._split(self.query(x))
        key, value = (self._split(part) for part in self.key_value(context).chunk(2, dim=-1))
        query, key = rotate(query, positions[0], self.base), rotate(key, positions[1], self.base)
        mask = None
        if is_present is not None:
            # A row that may see nothing would be 0/0; it sees everything instead, and its caller drops the result.
            mask = (is_present | ~is_present.any(dim=-1, keepdim=True))[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, heads, T, head width)


def feed_forward(width: int) -> nn.Sequential:
    """Normalises, widens four times, and comes back: (..., width) -> (..., width)."""
    return nn.Sequential(
        nn.RMSNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class Encoder(nn.Module):
    """Reads neighbours in both directions, conditioned on the chunk that retrieved them."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.dropout = config.dropout
        self.project = nn.Identity() if width == config.width else nn.Linear(config.width, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(config.encoder_layers))
        self.attentions = nn.ModuleList(Attention(config, width, width) for _ in range(config.encoder_layers))
        self.feeds = nn.ModuleList(feed_forward(width) for _ in range(config.encoder_layers))
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

    def forward(self, h: Tensor, encoded: Tensor, is_present: Tensor) -> Tensor:
        """`h` (B, L, W), `encoded` (B l, k r, E), `is_present` (B, l, k, r) -> what to add to h (B, L, W)."""
        B, L, W = h.shape
        m, k, r = self.chunk_tokens, *is_present.shape[2:]
        is_present = is_present.view(-1, k * r)  # (B l, k r)
        attending = F.pad(self.norm(h)[:, m - 1 :], (0, 0, 0, m - 1)).view(-1, m, W)  # (B l, m, W)
        # A neighbour's chunk lies at 0..m-1 and its continuation from m on, so a query goes on where its chunk ended: in a
        # near-copy the next token is always one to the right.
        positions = torch.arange(m - 1, 2 * m - 1, device=h.device), torch.arange(r, device=h.device).repeat(k)
        out = self.attention(attending, encoded, positions, is_present)
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
        self.feed = feed_forward(config.width)

    def attend(self, h: Tensor) -> Tensor:
        x, positions = self.norm(h), torch.arange(h.shape[1], device=h.device)
        return h + F.dropout(self.attention(x, x, (positions, positions), causal=True), self.dropout, self.training)

    def retrieve(self, h: Tensor, encoded: Tensor, is_present: Tensor) -> Tensor:
        assert self.cross is not None
        return h + F.dropout(self.cross(h, encoded, is_present), self.dropout, self.training)

    def think(self, h: Tensor) -> Tensor:
        return h + F.dropout(self.feed(h), self.dropout, self.training)


class LanguageModel(nn.Module):
    """What `train`, `evaluate` and `generate` work with: logits (B, L, V) of tokens (B, L) and neighbours (B, l, k, r)."""

    config: RetroConfig


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
            self.encoder = Encoder(config)
            self.final_norm = nn.RMSNorm(config.width)
            initialise(self, config.layers)

    def forward(self, tokens: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of each next token.

        Args:
            tokens: (B, L) int64, L a multiple of m; `config.pad_token` past the end of a document.
            neighbours: (B, l, k, r) int64, `config.pad_token` where there is nothing; None turns retrieval off.
        """
        h = self.embedding(tokens)
        encoded = None
        for layer in self.layers:
            h = layer.attend(h)
            if neighbours is not None and layer.cross is not None:
                if encoded is None:  # conditioned on the activations that the first cross-attention sees
                    is_present = neighbours != self.config.pad_token
                    encoded = self.encoder(self.embedding(neighbours), is_present, h)
                h = layer.retrieve(h, encoded, is_present)
            h = layer.think(h)
        return F.linear(self.final_norm(h), self.embedding.weight[: self.config.vocab_size])


def initialise(module: nn.Module, layers: int) -> None:
    """Gives what will be trained normal weights of 0.02, and smaller ones at the ends of residual branches (GPT-2)."""
    for name, weight in module.named_parameters():
        if weight.requires_grad and weight.dim() == 2:
            is_end = name.endswith(("out.weight", "feed.3.weight"))
            nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5 if is_end else 0.02)


def token_losses(logits: Tensor, tokens: Tensor, pad_token: int) -> Tensor:
    """Cross-entropy in nats of every token given those before it: (B, L) float32, 0 where there is no token.

    The first token of a sequence has nothing before it and is charged as one of V equally likely.
    """
    V = logits.shape[-1]
    # The last position predicts nothing. Cutting it off the logits, by far the largest array, would copy them.
    targets = F.pad(tokens[:, 1:], (0, 1), value=pad_token)
    losses = F.cross_entropy(
        logits.reshape(-1, V).float(), targets.reshape(-1), ignore_index=pad_token, reduction="none"
    )
    first = (tokens[:, :1] != pad_token) * torch.tensor(float(V), device=tokens.device).log()
    return torch.cat((first, losses.view(len(tokens), -1)[:, :-1]), dim=1)
