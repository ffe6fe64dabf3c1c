from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from real_corpora import unpack

from retrodb.corpus.document import Document, Fields, Limits, Reject
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.readers import read_split
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.corpus.train_tokenizer import train_byte_bpe

SENTENCES = [
    "The retrieval database holds chunks of documents, and their continuations.",
    "A chunk is 64 consecutive tokens of one document; the last one may be shorter.",
    "数据库检索增强语言模型，文本分块。",
    "한국어 문장을 조각으로 나눈다.",
    "Emoji 👩‍👩‍👧 and flags 🇩🇪 are text too.",
    "def f(x):\n    return x ** 2\n",
] * 20


def read_all(
    *inputs: Path | str,
    fields: Fields | None = None,
    limits: Limits | None = None,
    format: str = "auto",
    target_bytes: int = 1 << 30,
) -> list[Document | Reject]:
    fields = fields or Fields()
    splits = plan_splits(expand_inputs(inputs, format=format), target_bytes, fields.marker)
    return [record for split in splits for record in read_split(split, fields, limits or Limits())]


def rejects(records: list[Document | Reject]) -> list[tuple[str, str]]:
    return [(record.location, record.reason) for record in records if isinstance(record, Reject)]


def texts(records: list[Document | Reject]) -> list[str]:
    return [record.text for record in records if isinstance(record, Document)]


@pytest.fixture(scope="session")
def byte_bpe() -> Tokenizer:
    return train_byte_bpe(SENTENCES, 600)


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("wordpiece")
    words = ["the", "chunk", "token", "##s", "is", "of", "data", "##base", ",", ".", "数", "[", "]", "sep"]
    letters = [letter for character in "abcdefghijklmnopqrstuvwxyz" for letter in (character, f"##{character}")]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*names, *words, *letters]) + "\n")
    return resolve_tokenizer(folder)


@pytest.fixture(scope="session")
def train_sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    sentencepiece = pytest.importorskip("sentencepiece")

    def train(**settings: object) -> Path:
        model = io.BytesIO()
        lines = [line for sentence in SENTENCES for line in sentence.splitlines()]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, minloglevel=2, **settings
        )
        path = tmp_path_factory.mktemp("sentencepiece") / "m.model"
        path.write_bytes(model.getvalue())
        return path

    return train


@pytest.fixture(scope="session")
def unigram(train_sentencepiece: Callable[..., Path]) -> Tokenizer:
    return resolve_tokenizer(train_sentencepiece(vocab_size=300, model_type="unigram"))


@pytest.fixture(scope="session")
def byte_fallback_bpe(train_sentencepiece: Callable[..., Path]) -> Tokenizer:
    path = train_sentencepiece(
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    return resolve_tokenizer(path)


@pytest.fixture(scope="session")
def real_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `gpt2` and `bert-base-uncased`."""
    return unpack("tokenizers.tar.zst", tmp_path_factory.mktemp("tokenizers"))


def json_lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
