"""Small tokenizer folders of many classes, as published models have them: vocabulary files and the name of the class."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = [
    "The retrieval database holds chunks of documents, and their continuations.",
    "A chunk is 64 consecutive tokens of one document; the last one may be shorter, isn't it?",
    "数据库检索增强语言模型，文本分块。",
    "한국어 문장을 조각으로 나눈다. Größe naïve ﬁne ½",
    "def f(x):\n    return x ** 2\n",
] * 20
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

WORDPIECE = ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"]
BYTE_LEVEL = ["GPT2Tokenizer", "RobertaTokenizer", "Qwen2Tokenizer", "BartTokenizer", "DebertaTokenizer"]
END_OF_WORD = ["OpenAIGPTTokenizer", "CLIPTokenizer"]
SENTENCEPIECE = {
    "XLMRobertaTokenizer": "sentencepiece.bpe.model",
    "MBartTokenizer": "sentencepiece.bpe.model",
    "CamembertTokenizer": "sentencepiece.bpe.model",
    "T5Tokenizer": "spiece.model",
    "AlbertTokenizer": "spiece.model",
    "XLNetTokenizer": "spiece.model",
    "DebertaV2Tokenizer": "spm.model",
    "BigBirdTokenizer": "spiece.model",
    "NllbTokenizer": "sentencepiece.bpe.model",  # a BPE
    "LlamaTokenizer": "tokenizer.model",  # a BPE
    "GemmaTokenizer": "tokenizer.model",  # a BPE
}
BPE_MODELS = ("NllbTokenizer", "LlamaTokenizer", "GemmaTokenizer")
CLASSES = [*WORDPIECE, *BYTE_LEVEL, *END_OF_WORD, *SENTENCEPIECE]


def write_tokenizer_folder(folder: Path, name: str, **config: object) -> Path:
    """A folder with the vocabulary files of a class, and its name in `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    if name in WORDPIECE:
        (folder / "vocab.txt").write_text("\n".join(_wordpiece()) + "\n")
    elif name in SENTENCEPIECE:
        kind = "bpe" if name in BPE_MODELS else "unigram"
        pieces = ["[CLS]", "[SEP]", "[MASK]", "<pad>"] if name == "AlbertTokenizer" else []
        content = sentencepiece_model(model_type=kind, byte_fallback=kind == "bpe", control_symbols=pieces)
        (folder / SENTENCEPIECE[name]).write_bytes(content)
    else:
        _write_merges(folder, _byte_level_bpe() if name in BYTE_LEVEL else _end_of_word_bpe(name))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **config}))
    return folder


def sentencepiece_model(**settings: object) -> bytes:
    model = io.BytesIO()
    lines = [line for text in TEXT for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=420,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def _wordpiece() -> list[str]:
    letters = sorted({character for text in TEXT for character in text.lower() if not character.isspace()})
    return [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), "the", "chunk", "data", "##base"]


def _byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(tokenizer, ["<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>"])


def _end_of_word_bpe(name: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    is_clip = name == "CLIPTokenizer"
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False) if is_clip else pre_tokenizers.Whitespace()
    )
    return _trained(tokenizer, ["<|startoftext|>", "<|endoftext|>"] if is_clip else ["<unk>"], "</w>")


def _trained(tokenizer: Tokenizer, special: list[str], suffix: str = "") -> Tokenizer:
    alphabet: Callable[[], list[str]] = pre_tokenizers.ByteLevel.alphabet
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(alphabet()),
        show_progress=False,
        **({"end_of_word_suffix": suffix} if suffix else {}),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _write_merges(folder: Path, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
