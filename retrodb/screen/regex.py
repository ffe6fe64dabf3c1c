"""Regular expressions: how often one matches in a text, by RE2, whose time is linear in the text whatever the expression."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodb.errors import UsageError
from retrodb.screen.wordlist import count_words, measured, phrase_table

if TYPE_CHECKING:
    from retrodb.format.arrays import Float64Array


@dataclass(frozen=True)
class RegexTagger:
    """Matches of an expression in RE2's syntax; it is case-sensitive unless it begins with `(?i)`."""

    pattern: str
    measure: str  # "share" of the words, each match counted as one, or "count"

    def __post_init__(self) -> None:
        try:
            found = pc.count_substring_regex(pa.array([""]), self.pattern)[0].as_py()
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"not a regular expression of RE2 ({error})", where=self.pattern, remedy="RE2 has no look-around."
            ) from error
        if found:
            raise UsageError(
                "this expression matches the empty text", where=self.pattern, remedy="Make it match something."
            )

    def definition(self) -> dict[str, Any]:
        """The expression itself."""
        return {"kind": "regex", "pattern": self.pattern, "measure": self.measure}

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) the number of matches, or what share of the words that is."""
        found = pc.count_substring_regex(texts, self.pattern).to_numpy(zero_copy_only=False).astype(np.int64)
        num_words = count_words(texts, phrase_table([]))[2] if self.measure == "share" else found
        return measured(self.measure, found, found, num_words)

    def excerpt(self, text: str) -> list[str]:
        """The matches, where Python reads the expression too."""
        try:
            return [match[0] for match in re.finditer(self.pattern, text)]
        except re.error:
            return []
