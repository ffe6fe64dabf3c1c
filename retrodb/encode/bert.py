"""A BERT encoder for inference: rows of equal length in, hidden states out.

There is no padding and no attention mask, because all rows of a batch have equal length. Query, key and value are one matrix
product. All operations between the products are in place. The same code runs BERT and models that differ only in names:
MiniLM, DistilBERT, RoBERTa, XLM-RoBERTa, Contriever, BGE, E5, GTE, and the two encoders of DPR. It needs only torch;
`read_weights` also needs safetensors.

Shapes: B rows of a batch, L tokens each, D hidden width, I intermediate width, H heads, V vocabulary.
Source: Devlin et al. 2019; Vaswani et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from retrodb.errors import InputError

# `hidden_act` -> the activation, in place. "gelu_new" is the older name of the tanh approximation.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_new": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "relu": torch.relu_,
}
# `model_type` -> whether positions start after the padding id, as in fairseq.
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
    """The settings of a model that are not visible in its weights."""

    num_layers: int
    num_heads: int
    hidden: int  # D
    intermediate: int  # I
    activation: str = "gelu"
    norm_eps: float = 1e-12
    first_position: int = 0  # row of the position table of the first token
    is_distilbert: bool = False  # whose tensors have other names

    @classmethod
    def from_json(cls, config: Mapping[str, object]) -> BertConfig | None:
        """The settings of a `config.json`, or None for an architecture that this encoder cannot compute."""
        model_type = config.get("model_type")
        is_distilbert = model_type == "distilbert"
        activation = config.get("activation" if is_distilbert else "hidden_act", "gelu")
        sizes = DISTILBERT_SIZES if is_distilbert else BERT_SIZES
        is_known = (
            model_type in MODEL_TYPES
            and activation in ACTIVATIONS
            and all(name in config for name in sizes)
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder")
            and not config.get("projection_dim")
        )
        if not is_known:
            return None
        layers, heads, hidden, intermediate = (int(cast("int", config[name])) for name in sizes)
        return cls(
            layers,
            heads,
            hidden,
            intermediate,
            activation=str(activation),
            norm_eps=cast("float", config.get("layer_norm_eps", 1e-12)),
            first_position=cast("int", config.get("pad_token_id", 1)) + 1 if MODEL_TYPES[str(model_type)] else 0,
            is_distilbert=is_distilbert,
        )

    def num_flops(self, length: int) -> int:
        """Floating-point operations of one row of `length` tokens: those of the products, two per multiply-add."""
        products = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)
        attention = 4 * length * self.hidden  # scores, and weights times values
        return self.num_layers * length * (products + attention)


@dataclass(frozen=True)
class Layer:
    """The weights of one layer: (weight, bias) of each product and norm."""

    qkv: tuple[Tensor, Tensor]  # (3D, D)
    attention_out: tuple[Tensor, Tensor]  # (D, D)
    attention_norm: tuple[Tensor, Tensor]  # (D,)
    up: tuple[Tensor, Tensor]  # (I, D)
    down: tuple[Tensor, Tensor]  # (D, I)
    norm: tuple[Tensor, Tensor]  # (D,)


class LeanBert:
    """`model(ids_BL)` is the last hidden state (B, L, D), with the dtype and on the device of the weights."""

    def __init__(self, config: BertConfig, weights: Mapping[str, Tensor], *, device: str, dtype: torch.dtype) -> None:
        """Args:
            weights: the tensors of a checkpoint, by their Hugging Face names.

        Raises:
            InputError: a tensor is missing, so the weights and the config do not match.
        """
        self.config = config
        tensors = _Tensors(weights, device, dtype)
        embeddings = tensors.prefix + "embeddings."
        self.words_VD = tensors[embeddings + "word_embeddings.weight"]
        # All token types are 0, so their embedding is added to that of the position.
        positions = tensors[embeddings + "position_embeddings.weight"][config.first_position :]
        types = embeddings + "token_type_embeddings.weight"
        self.positions_LD = positions if config.is_distilbert else positions + tensors[types][0]
        self.embedding_norm = tensors.pair(embeddings + "LayerNorm")
        self.layers = [_read_layer(tensors, config, index) for index in range(config.num_layers)]

    @property
    def num_embeddings(self) -> int:
        """Rows of the word embedding. Ids must be smaller."""
        return self.words_VD.shape[0]

    @property
    def max_length(self) -> int:
        """Number of positions of the model."""
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
    """The tensors of a checkpoint, without the prefix of their names, converted when they are read."""

    def __init__(self, weights: Mapping[str, Tensor], device: str, dtype: torch.dtype) -> None:
        self.weights, self.device, self.dtype = weights, device, dtype
        marker = "embeddings.word_embeddings.weight"
        # The prefix depends on the training code: "", "bert.", "roberta.", "question_encoder.bert_model."
        self.prefix = next((name.removesuffix(marker) for name in weights if name.endswith(marker)), "")

    def __getitem__(self, name: str) -> Tensor:
        # In the original BERT checkpoints the parameters of a norm are gamma and beta.
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
    """All tensors of the safetensors files of a checkpoint, memory-mapped.

    Raises:
        InputError: a file is truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"the weights cannot be read ({error})", where=str(file), remedy="Download the file again."
            ) from error
    return weights


def random_weights(config: BertConfig, *, vocab_size: int, num_positions: int, seed: int) -> dict[str, Tensor]:
    """Random weights with the names of BERT, for benchmarks: the speed of a model does not depend on its weights."""
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
