"""RETROfit (Borgeaud et al. 2022, section 4.3): retrieval for a language model that was trained without.

The base is any causal language model of Hugging Face transformers. It stays frozen: only the neighbour encoder and the chunked
cross-attention after some of its layers are trained, by `train_model` like our own model.

Shapes: as in `model`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from retrodb.errors import InputError
from retrodb.retro.model import ChunkedCrossAttention, LanguageModel, NeighbourEncoder, initialise_weights
from retrodb.retro.model_config import RetroConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fit_config(base: PreTrainedModel, *, chunk_tokens: int, k: int, seed: int = 0) -> RetroConfig:
    """The shape of what is added to `base`: an equally wide encoder, and cross-attention in every third layer from the middle.

    Args:
        base: a causal language model of transformers.
        chunk_tokens: m, of the neighbour table.
        k: neighbours per chunk.
        seed: of the added weights, the order of the batches and dropout.
    """
    shape = base.config
    width, layers, heads = shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads
    return RetroConfig(
        vocab_size=shape.vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        head_width=width // heads,
        cross_layers=tuple(range((layers + 1) // 2, layers + 1, 3)),
        encoder_width=width,
        chunk_tokens=chunk_tokens,
        num_chunks=max(1, shape.max_position_embeddings // chunk_tokens),
        k=k,
        seed=seed,
    )


class RetroFit(LanguageModel):
    """A frozen causal language model with chunked cross-attention after some of its layers.

    The output weights of the cross-attentions start at 0, so an untrained model gives exactly the logits of the base. Deviation:
    the paper puts them between attention and feed-forward. After the layer they can be added to any architecture from outside.
    """

    def __init__(self, base: PreTrainedModel, config: RetroConfig) -> None:
        """`base` is a loaded causal language model of transformers. `fit_config` gives the configuration.

        Raises:
            InputError: for a base whose layers cannot be found.
        """
        super().__init__()
        self.config = config
        self.base = base.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = NeighbourEncoder(config)
            self.cross = nn.ModuleList(ChunkedCrossAttention(config) for _ in config.cross_layers)
            initialise_weights(self, config.layers)
        for name, weight in self.cross.named_parameters():
            if name.endswith("out.weight"):
                nn.init.zeros_(weight)
        layers = _layers(base, config.layers)
        for number, cross in zip(config.cross_layers, self.cross, strict=True):
            layers[number - 1].register_forward_hook(lambda _, __, output, cross=cross: self._retrieve(cross, output))
        self._neighbours: Tensor | None = None  # (B, l, k, r), during a forward pass
        self._encoded: Tensor | None = None  # (B l, k r, E), computed at the first cross-attention for all of them

    @cached_property
    def base_fingerprint(self) -> str:  # cached, because the base never changes
        """Of the class and the weights of the base: equal for the same base in any folder and number of files."""
        return weights_fingerprint(self.base)

    def forward(self, tokens: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """As `RetroModel.forward`."""
        is_token = tokens != self.config.pad_token
        self._neighbours, self._encoded = neighbours, None
        try:
            output = self.base(input_ids=tokens * is_token, attention_mask=is_token.long(), use_cache=False)
        finally:
            self._neighbours = self._encoded = None
        return output.logits  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> RetroFit:
        """The base never trains, so it has no dropout either."""
        super().train(mode)
        self.base.eval()  # type: ignore[no-untyped-call]
        return self

    def _retrieve(self, cross: nn.Module, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if self._neighbours is None:
            return output
        h = output[0] if isinstance(output, tuple) else output
        is_present = self._neighbours != self.config.pad_token
        if self._encoded is None:
            embedded = self.base.get_input_embeddings()(self._neighbours * is_present)
            self._encoded = self.encoder(embedded, is_present, h)
        h = h + F.dropout(cross(h, self._encoded, is_present), self.config.dropout, self.training)
        return (h, *output[1:]) if isinstance(output, tuple) else h


def weights_fingerprint(model: nn.Module) -> str:
    """A digest of a model's class and weights by name. They are compared as float32, which holds all shorter floats exactly."""
    digest = xxhash.xxh3_128(type(model).__name__.encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _layers(base: nn.Module, count: int) -> nn.ModuleList:
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    what = f"no list of {count} layers in {type(base).__name__}"
    raise InputError(what, remedy="Choose a decoder-only language model such as GPT-2 or Llama.")
