"""Small models of random weights, made for each session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnop"),
]
WORDS += ["the", "cat", "sat", "mat", "##ing", ".", "[", "]", "中", "é"]
SIZES = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}

MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=40)),
    "bert-masked-lm": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, hidden_act="gelu_new")),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=80, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    ),
    "roberta": lambda: transformers.RobertaModel(
        transformers.RobertaConfig(**SIZES, max_position_embeddings=45, type_vocab_size=1, pad_token_id=4)
    ),
    "xlm-roberta": lambda: transformers.XLMRobertaModel(
        transformers.XLMRobertaConfig(**SIZES, max_position_embeddings=45, pad_token_id=4)
    ),
    # Not known to the lean encoder: computed by transformers.
    "electra": lambda: transformers.ElectraModel(transformers.ElectraConfig(**SIZES, embedding_size=16)),
    "mpnet": lambda: transformers.MPNetModel(
        transformers.MPNetConfig(**SIZES, max_position_embeddings=45, pad_token_id=1)
    ),
    "albert": lambda: transformers.AlbertModel(transformers.AlbertConfig(**SIZES, embedding_size=16)),
    "fnet": lambda: transformers.FNetModel(
        transformers.FNetConfig(vocab_size=80, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    ),
    "t5": lambda: transformers.T5Model(
        transformers.T5Config(vocab_size=80, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ),
    "deberta-v2": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**SIZES, relative_attention=True)),
}


def wordpiece() -> Tokenizer:
    """A BERT tokenizer of a few dozen pieces, with padding and truncation baked in as some published ones have them."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(8)
    return tokenizer


def write_model(folder: Path, kind: str = "bert", **files: object) -> Path:
    """A model folder: `write_model(folder, "bert", **{"modules.json": [...]})`."""
    torch.manual_seed(7)
    model = MODELS[kind]()
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms, too, must matter
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    wordpiece().save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    return folder


class ScarceModel:
    """A model on a device whose memory holds only so many tokens of a batch."""

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], max_tokens: int) -> None:
        self.model, self.max_tokens = model, max_tokens

    def __call__(self, ids_BL: torch.Tensor) -> torch.Tensor:
        if ids_BL.numel() > self.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(ids_BL)
