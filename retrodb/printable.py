"""Text from outside, made safe to show: in messages, in progress and on a terminal."""

from __future__ import annotations

import re
import unicodedata

# Invisible, although Unicode counts them as letters and marks.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def escape(text: str, *, keep: str = "") -> str:
    r"""The text with every character escaped that is invisible or controls a terminal: `\x1b`, `\u202e`, `\udce9`.

    These are control characters, bidirectional overrides, zero-width characters, line and paragraph separators, lone
    surrogates, and code points that are not assigned.

    Args:
        keep: control characters to leave as they are, such as a line feed.
    """
    return _SUSPECT.sub(lambda match: _escaped(match[0], keep), text)


def _escaped(character: str, keep: str) -> str:
    if character in keep or _is_visible(character):
        return character
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _is_visible(character: str) -> bool:
    is_shown = character.isprintable() or unicodedata.category(character) == "Zs"
    return is_shown and character not in _INVISIBLE


def has_lone_surrogate(text: str) -> bool:
    """Whether a text is not Unicode: Python reads a byte that is not UTF-8 in an argument as a lone surrogate."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
