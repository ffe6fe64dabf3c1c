"""Trains the tokenizer of a language model: a byte-level BPE over the words of GPT-2."""

from __future__ import annotations

import re
from collections.abc import Iterable

import orjson

from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.tokenizer_files import END_OF_TEXT
from retrodb.errors import UsageError

SMALLEST_VOCABULARY = 257  # the bytes and the special token
# The time of a merge grows with the square of the length of a word, and a run of a million blanks is one word.
LONGEST_WORD = 4_096
_CLASSES = (r"\s", r"[^\W\d_]", r"\d", r"[^\w\s]")  # about those of the words of GPT-2
_LONG_WORDS = re.compile("|".join(f"({of_class}{{{LONGEST_WORD}}}){of_class}+" for of_class in _CLASSES))


def train_byte_bpe(texts: Iterable[str], vocab_size: int = 32_000, min_frequency: int = 2) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens; it has fewer if no pairs are left to merge.

    The same texts give the same tokenizer, in any order and with any number of threads. Id 0 is `<|endoftext|>`, 1 to 256
    are the bytes, and the merges follow. Of a longer word only the first
    4,096 characters count.

    Args:
        min_frequency: pairs that are less frequent are not merged.

    Raises:
        UsageError: `vocab_size` is smaller than the bytes and the special token.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(f"a vocabulary of {vocab_size} tokens", remedy=f"The minimum is {SMALLEST_VOCABULARY}.")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_with_short_words, texts), trainer=trainer)
    return Tokenizer(orjson.loads(tokenizer.to_str()))


def _with_short_words(text: str) -> str:
    return _LONG_WORDS.sub(r"\1\2\3\4", text) if len(text) > LONGEST_WORD else text
