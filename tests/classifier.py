"""A tiny classifier, trained in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def train_classifier(folder: Path, texts: Sequence[str], labels: Sequence[int], epochs: int = 6) -> Path:
    """Train a BERT of two layers from random weights on texts and whether each is toxic (1); gives its folder."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(exist_ok=True)
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=2000, show_progress=False)
    pieces.save(str(folder / "pieces.json"))
    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "pieces.json"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, id2label={0: "fine", 1: "toxic"}, label2id={"fine": 0, "toxic": 1},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    encoded = tokenizer(list(texts), truncation=True, max_length=64, padding=True, return_tensors="pt")
    target = torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(32):
            inputs = {name: encoded[name][rows] for name in ("input_ids", "attention_mask")}
            loss = model(**inputs, labels=target[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval().save_pretrained(folder)
    return folder
