"""Prints the tables of `retrodb/dedup/codepoints.py`, from the Unicode 14.0 of CPython 3.11.

    python tests/dedup/generate_codepoints.py

The coding is described where it is read, in `codepoints.py`.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby

NUM_CODEPOINTS = 0x110000
# CJK, and the scripts of South-East Asia that put no space between words.
SINGLES = [
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai and Lao, Myanmar, Khmer
    *((0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B)),  # ideographic iteration mark, closing mark, zero, numerals
    *((0x3041, 0x30FF), (0x31F0, 0x31FF), (0x1B000, 0x1B16F)),  # kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # ideographs
]


def word_class(codepoint: int, is_single: bool) -> int:
    """0 separator, 1 letter or number, 2 mark, 3 a word by itself, 4 unassigned."""
    category = unicodedata.category(chr(codepoint))
    if category == "Cn":
        return 4
    if category[0] not in "LMN":
        return 0
    return 3 if is_single else 2 if category[0] == "M" else 1


def composing_seconds() -> set[int]:
    """Codepoints that composition may join to the one before: halves of composites, Hangul vowels and finals."""
    seconds = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    for codepoint in range(NUM_CODEPOINTS):
        parts = unicodedata.decomposition(chr(codepoint)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first, second = (int(part, 16) for part in parts)
            if unicodedata.normalize("NFC", chr(first) + chr(second)) == chr(codepoint):
                seconds.add(second)
    return seconds


def nfkc_state(codepoint: int, seconds: set[int]) -> int:
    """0 kept by NFKC. 1 replaced by a text that joins nothing before it. 2 may join or pass what is before."""
    char = chr(codepoint)
    if unicodedata.category(char) == "Cn":
        return 1
    whole, first = unicodedata.normalize("NFKC", char), unicodedata.normalize("NFKD", char)[0]
    if codepoint in seconds or ord(first) in seconds or (unicodedata.combining(first) and whole != char):
        return 2
    return 0 if whole == char else 1


def properties() -> list[int]:
    """Word class + 8 * NFKC state of every codepoint."""
    seconds, is_single = composing_seconds(), bytearray(NUM_CODEPOINTS)
    for first, last in SINGLES:
        is_single[first : last + 1] = b"\1" * (last + 1 - first)
    return [word_class(c, bool(is_single[c])) + 8 * nfkc_state(c, seconds) for c in range(NUM_CODEPOINTS)]


def combining() -> list[int]:
    """Canonical combining class of every codepoint."""
    return [unicodedata.combining(chr(codepoint)) for codepoint in range(NUM_CODEPOINTS)]


def lower(codepoint: int) -> int:
    """Simple lower-case mapping; `str.lower` differs from it in one codepoint."""
    return ord("i") if codepoint == 0x130 else ord(chr(codepoint).lower())


def runs(values: Sequence[int]) -> Iterator[str]:
    for value, group in groupby(values):
        yield f"{sum(1 for _ in group):x}.{value:x}"


def lower_runs() -> Iterator[str]:
    cased = [c for c in range(NUM_CODEPOINTS) if lower(c) != c]
    while cased:
        start, delta = cased[0], lower(cased[0]) - cased[0]
        step = 1 if lower(start + 1) - start - 1 == delta else 2
        count = 1
        while lower(start + count * step) - (start + count * step) == delta:
            count += 1
        yield f"{start:x}.{count:x}.{step}.{delta:x}"
        cased = cased[count:]


if __name__ == "__main__":
    assert unicodedata.unidata_version == "14.0.0"
    for name, words in (("PROPERTIES", runs(properties())), ("COMBINING", runs(combining())), ("LOWER", lower_runs())):
        print(f'_{name} = """', textwrap.fill(" ".join(words), 118), '"""', "", sep="\n")
