"""Word lists: the words of a text that are in a list, and what fraction of all words they are.

Words are those of the leak scan (`dedup/shingles.py`): case, width and punctuation do not matter, and an entry never matches
inside a longer word. Text and list are also case-folded, so that STRASSE matches Straße. A phrase is several consecutive
words. An entry with other signs than letters, digits, blanks, hyphens and apostrophes, such as an emoji, is searched for as
it is written, at any position.

Legend: M texts, W words of a text, E entries.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodb.dedup.codepoints import codepoint_tables
from retrodb.dedup.normalise import normalised_batches
from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import WordBuffers, split_words, whole_text_key, word_buffers, words_of
from retrodb.errors import InputError
from retrodb.format.arrays import ByteArray, Int64Array, UInt64Array
from retrodb.screen.definition import TaggerDefinition

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retrodb.format.arrays import BoolArray, Float64Array

_LOWEST_BITS = np.uint64(0xFFFF)
_WORDS_ONLY = re.compile(r"[\w\s'’-]+")


@dataclass(frozen=True)
class WordListDefinition(TaggerDefinition):
    """What the scores of a word list depend on."""

    kind: ClassVar[str] = "wordlist"

    entries: int  # number of entries
    digest: str  # SHA-256 of the entries
    measure: str  # "share" or "count"


@dataclass(frozen=True)
class WordList:
    """The entries of a list, case-folded, distinct and sorted."""

    entries: tuple[str, ...]
    measure: str  # "share" or "count"

    def definition(self) -> WordListDefinition:
        """The number of entries and their digest."""
        digest = hashlib.sha256("\n".join(self.entries).encode()).hexdigest()
        return WordListDefinition(len(self.entries), digest, self.measure)

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) the fraction of words that entries cover, or the number of matches. Longer entries match first."""
        folded = _case_folded(texts)
        num_matches, covered, num_words = count_words(folded, self._table)
        for sign in self._signs:
            times = pc.count_substring(folded, sign, ignore_case=True).to_numpy(zero_copy_only=False)
            num_matches, covered = num_matches + times, covered + times
        return match_scores(self.measure, num_matches, covered, num_words)

    def excerpt(self, text: str) -> list[str]:
        """The matches of entries in a text, as they are written there."""
        pieces = [r"(?<!\w)" + r"[\W_]+".join(map(re.escape, words)) + r"(?!\w)" for words in self._phrases]
        pieces += [re.escape(sign) for sign in self._signs]
        return [match[0] for match in re.finditer("|".join(sorted(pieces, key=len, reverse=True)), text, re.IGNORECASE)]

    @cached_property
    def _phrases(self) -> list[list[str]]:
        return [words for entry in self.entries if _has_words_only(entry) and (words := words_of(entry))]

    @cached_property
    def _signs(self) -> list[str]:
        return [entry for entry in self.entries if not (_has_words_only(entry) and words_of(entry))]

    @cached_property
    def _table(self) -> PhraseTable:
        return phrase_table(self._phrases)


def _has_words_only(entry: str) -> bool:
    """Whether an entry has only words. An accent that is a separate codepoint is part of its letter."""
    return _WORDS_ONLY.fullmatch(unicodedata.normalize("NFKC", entry)) is not None


def read_word_list(path: str, measure: str) -> WordList:
    """Read a file with one entry per line. Blank lines, and lines that begin with `#` and a blank, are skipped.

    Raises:
        InputError: the file does not exist, is not UTF-8 text, or has no entry.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"not readable as a word list ({error})", where=path, remedy="Give a UTF-8 text file."
        ) from error
    entries = {line.strip().casefold() for line in lines if not line.startswith("# ")} - {"", "#"}
    if not entries:
        raise InputError("no words in this word list", where=path, remedy="Write one word or phrase per line.")
    return WordList(tuple(sorted(entries)), measure)


@dataclass(frozen=True)
class PhraseTable:
    """Phrases as hashes, for a fast search."""

    first_words: UInt64Array  # (F,) hashes of the first words of all phrases, ascending
    may_begin: BoolArray  # (65_536,) whether a first word has these lowest bits: rejects nearly all words quickly
    keys: UInt64Array  # (E,) of the phrases, ascending
    lengths: Int64Array  # distinct numbers of words of a phrase, descending


def phrase_table(phrases: list[list[str]]) -> PhraseTable:
    """The table of phrases. Each is a list of one or more words."""
    keys, first_words = [], []
    for words in phrases:
        hashes = _word_hashes(pa.array([" ".join(words)], pa.large_string()))
        keys.append(whole_text_key(hashes))
        first_words.append(hashes[0])
    lengths = sorted({len(words) for words in phrases}, reverse=True)
    firsts = np.unique(np.array(first_words, np.uint64))
    may_begin = np.zeros(1 << 16, dtype=bool)
    may_begin[firsts & _LOWEST_BITS] = True
    return PhraseTable(firsts, may_begin, np.unique(np.array(keys, np.uint64)), np.array(lengths, np.int64))


def count_words(texts: pa.LargeStringArray, table: PhraseTable) -> tuple[Int64Array, Int64Array, Int64Array]:
    """(M,) for each text the number of phrases that match, of words that they cover, and of all words."""
    counts = np.zeros((3, len(texts)), np.int64)
    for batch in normalised_batches(texts):
        _count(
            *(batch.data, batch.begins, batch.ends, codepoint_tables().folded, word_buffers(batch.begins, batch.ends)),
            *(table.first_words, table.may_begin, table.keys, table.lengths),
            counts[:, batch.first_document : batch.first_document + len(batch.begins)],
        )
    return counts[0], counts[1], counts[2]


def match_scores(measure: str, num_matches: Int64Array, covered: Int64Array, num_words: Int64Array) -> Float64Array:
    """(M,) the scores: the number of matches, or the fraction of words that they cover (at most 1)."""
    return num_matches.astype(np.float64) if measure == "count" else np.minimum(covered / np.maximum(num_words, 1), 1.0)


def _case_folded(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Case-fold the texts in which this gives other words than lower-casing, which is part of the word hashes."""
    is_special = pc.match_substring_regex(texts, _special_letters())
    if not pc.any(is_special).as_py():
        return texts
    folded = [text.casefold() for text in texts.filter(is_special).to_pylist()]
    return pc.replace_with_mask(texts, is_special, pa.array(folded, pa.large_string()))


@cache
def _special_letters() -> str:
    """A regular expression for the letters whose case-folding differs from their lower case, such as ß and ς."""
    return f"[{''.join(chr(c) for c in range(0x20000) if chr(c).casefold() != chr(c).lower())}]"


def _word_hashes(text: pa.LargeStringArray) -> UInt64Array:
    [batch] = normalised_batches(text)
    words = word_buffers(batch.begins, batch.ends)
    count = split_words(batch.data, batch.begins[0], batch.ends[0], codepoint_tables().folded, words)
    return words.hashes[:count]


@kernel
def _count(
    data: ByteArray, begins: Int64Array, ends: Int64Array, folded: NDArray[np.int32],
    words: WordBuffers,
    first_words: UInt64Array, may_begin: BoolArray, keys: UInt64Array, lengths: Int64Array, counts: Int64Array,
) -> None:  # fmt: skip
    for document in range(len(begins)):
        num_words = split_words(data, begins[document], ends[document], folded, words)
        counts[2, document] = num_words
        i = 0
        while i < num_words:
            taken = 0
            if may_begin[words.hashes[i] & _LOWEST_BITS] and _is_in(words.hashes[i], first_words):
                for length in lengths:
                    if i + length <= num_words and _is_in(whole_text_key(words.hashes[i : i + length]), keys):
                        taken = length
                        break
            if taken > 0:
                counts[0, document] += 1
                counts[1, document] += taken
            i += max(taken, 1)


@kernel
def _is_in(key: np.uint64, keys: UInt64Array) -> bool:
    position = np.searchsorted(keys, key)
    return bool(position < len(keys) and keys[position] == key)
