"""A BERT encoder that does nothing but encode: exact lengths in, hidden states out.

Batches hold rows of one length, so there is no padding and no attention mask; query, key and value are one product; everything
between the products is done in place. The same code runs BERT and its relatives that differ in names only: MiniLM, DistilBERT,
RoBERTa and XLM-RoBERTa, Contriever, BGE, E5, GTE, and the towers of DPR. It needs torch and nothing else, `read_weights`
also safetensors.

Shapes: B rows of a batch, L tokens each, D hidden width, I intermediate width, H heads, V vocabulary.
Source: Devlin et al. 2019; Vaswani et al. 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retrodb.errors import InputError

# `hidden_act` -> the activation in place. "gelu_new" is the tanh approximation under its older name.
ACTIVATIONS: dict[str, Any] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_new": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "relu": torch.relu_,
}
# `model_type` -> whether positions are counted from the padding id on, as fairseq did.
MODEL_TYPES = {
    "bert": False,
    "dpr": False,
    "distilbert": False,
    "roberta": True,
    "camembert": True,
    "xlm-roberta": True,
}
DISTILBERT_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
# The first four fields of BertConfig in a config.json.
BERT_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
DISTILBERT_SIZES = ("n_layers", "n_heads", "dim", "hidden_dim")


@dataclass(frozen=True)
class BertConfig:
    """What the weights alone do not tell."""

    num_layers: int
    num_heads: int
    hidden: int  # D
    intermediate: int  # I
    activation: str = "gelu"
    norm_eps: float = 1e-12
    first_position: int = 0  # row of the position table for the first token
    is_distilbert: bool = False  # its tensors have names of their own

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> BertConfig | None:
        """The settings in a `config.json`, or None for an architecture that this encoder does not know."""
        model_type = config.get("model_type")
        distilbert = model_type == "distilbert"
        activation = config.get("activation" if distilbert else "hidden_act", "gelu")
        sizes = DISTILBERT_SIZES if distilbert else BERT_SIZES
        known = (
            model_type in MODEL_TYPES
            and activation in ACTIVATIONS
            and all(name in config for name in sizes)
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder")
            and not config.get("projection_dim")
        )
        if not known:
            return None
        layers, heads, hidden, intermediate = (int(config[name]) for name in sizes)
        return cls(
            layers,
            heads,
            hidden,
            intermediate,
            activation=activation,
            norm_eps=config.get("layer_norm_eps", 1e-12),
            first_position=config.get("pad_token_id", 1) + 1 if MODEL_TYPES[str(model_type)] else 0,
            is_distilbert=distilbert,
        )

    def num_flops(self, length: int) -> int:
        """Floating-point operations of one row of `length` tokens: the products, two operations per multiply-add."""
        products = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)
        attention = 4 * length * self.hidden  # scores, and weights times values
        return self.num_layers * length * (products + attention)


@dataclass(frozen=True)
class Layer:
    """The weights of one layer, as (weight, bias) of each product and norm."""

    qkv: tuple[Tensor, Tensor]  # (3D, D)
    attention_out: tuple[Tensor, Tensor]  # (D, D)
    attention_norm: tuple[Tensor, Tensor]  # (D,)
    up: tuple[Tensor, Tensor]  # (I, D)
    down: tuple[Tensor, Tensor]  # (D, I)
    norm: tuple[Tensor, Tensor]  # (D,)


class LeanBert:
    """`model(ids_BL)` is the last hidden state (B, L, D), in the weights' dtype and on their device."""

    def __init__(self, config: BertConfig, weights: Mapping[str, Tensor], *, device: str, dtype: torch.dtype) -> None:
        """Takes the tensors of a checkpoint under their Hugging Face names.

        Raises:
            InputError: a tensor is missing, so the file is not what its config says.
        """
        self.config = config
        tensors = _Tensors(weights, device, dtype)
        embeddings = tensors.prefix + "embeddings."
        self.words_VD = tensors[embeddings + "word_embeddings.weight"]
        # Token types are all 0, so their embedding is part of the position's.
        positions = tensors[embeddings + "position_embeddings.weight"][config.first_position :]
        types = embeddings + "token_type_embeddings.weight"
        self.positions_LD = positions if config.is_distilbert else positions + tensors[types][0]
        self.embedding_norm = tensors.pair(embeddings + "LayerNorm")
        self.layers = [_read_layer(tensors, config, index) for index in range(config.num_layers)]

    @property
    def num_embeddings(self) -> int:
        """Rows of the word embedding: ids must be smaller."""
        return self.words_VD.shape[0]

    @property
    def max_length(self) -> int:
        """Positions that the model knows."""
        return self.positions_LD.shape[0]

    def num_flops(self, length: int) -> int:
        """Floating-point operations of one row of `length` tokens."""
        return self.config.num_flops(length)

    def __call__(self, ids_BL: Tensor) -> Tensor:
        length, width = ids_BL.shape[1], self.config.hidden
        hidden_BLD = F.embedding(ids_BL, self.words_VD).add_(self.positions_LD[:length])
        hidden_BLD = F.layer_norm(hidden_BLD, (width,), *self.embedding_norm, self.config.norm_eps)
        for layer in self.layers:
            hidden_BLD = self._layer(layer, hidden_BLD)
        return hidden_BLD

    def _layer(self, layer: Layer, hidden_BLD: Tensor) -> Tensor:
        batch, length, width = hidden_BLD.shape
        heads, eps = self.config.num_heads, self.config.norm_eps
        qkv = F.linear(hidden_BLD, *layer.qkv).view(batch, length, 3, heads, width // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, L, D / H) each
        mixed_BLD = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        mixed_BLD = F.linear(mixed_BLD, *layer.attention_out).add_(hidden_BLD)
        mixed_BLD = F.layer_norm(mixed_BLD, (width,), *layer.attention_norm, eps)
        inner_BLI = ACTIVATIONS[self.config.activation](F.linear(mixed_BLD, *layer.up))
        return F.layer_norm(F.linear(inner_BLI, *layer.down).add_(mixed_BLD), (width,), *layer.norm, eps)


class _Tensors:
    """A checkpoint's tensors, whatever stands before their names, converted as they are asked for."""

    def __init__(self, weights: Mapping[str, Tensor], device: str, dtype: torch.dtype) -> None:
        self.weights, self.device, self.dtype = weights, device, dtype
        marker = "embeddings.word_embeddings.weight"
        # "", "bert.", "roberta.", "question_encoder.bert_model.": what a training head put in front.
        self.prefix = next((name.removesuffix(marker) for name in weights if name.endswith(marker)), "")

    def __getitem__(self, name: str) -> Tensor:
        # The original BERT checkpoints call the parameters of a norm gamma and beta.
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if name not in self.weights and old not in self.weights:
            raise InputError(f"the weights have no tensor '{name}'", remedy="Download the model again.")
        return self.weights[name if name in self.weights else old].to(self.device, self.dtype)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self[name + ".weight"], self[name + ".bias"]


def _read_layer(tensors: _Tensors, config: BertConfig, index: int) -> Layer:
    stem = tensors.prefix + ("transformer.layer." if config.is_distilbert else "encoder.layer.") + f"{index}."

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return tensors.pair(stem + (DISTILBERT_NAMES[name] if config.is_distilbert else name))

    query, key, value = (pair(f"attention.self.{name}") for name in ("query", "key", "value"))
    return Layer(
        qkv=(torch.cat([query[0], key[0], value[0]]), torch.cat([query[1], key[1], value[1]])),
        attention_out=pair("attention.output.dense"),
        attention_norm=pair("attention.output.LayerNorm"),
        up=pair("intermediate.dense"),
        down=pair("output.dense"),
        norm=pair("output.LayerNorm"),
    )


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of a checkpoint's safetensors files, memory-mapped."""
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def random_weights(config: BertConfig, *, vocab_size: int, num_positions: int, seed: int) -> dict[str, Tensor]:
    """Weights of a model that was never trained, under BERT's names: the speed of a shape does not depend on them."""
    generator = torch.Generator().manual_seed(seed)
    width, inner = config.hidden, config.intermediate
    weights = {
        f"embeddings.{name}_embeddings.weight": torch.randn(rows, width, generator=generator) * 0.02
        for name, rows in (("word", vocab_size), ("position", num_positions), ("token_type", 2))
    }
    shapes = {
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    shapes |= {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    norms = ["embeddings.LayerNorm"]
    for layer in range(config.num_layers):
        stem = f"encoder.layer.{layer}."
        for name, shape in shapes.items():
            weights[f"{stem}{name}.weight"] = torch.randn(shape, generator=generator) * 0.02
            weights[f"{stem}{name}.bias"] = torch.zeros(shape[0])
        norms += [f"{stem}attention.output.LayerNorm", f"{stem}output.LayerNorm"]
    for norm in norms:
        weights |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    return weights
