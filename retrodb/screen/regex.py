"""Regular expressions: how often one matches in a text. RE2 computes them in linear time for every expression."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodb.errors import UsageError
from retrodb.screen.definition import TaggerDefinition
from retrodb.screen.wordlist import count_words, match_scores, phrase_table

if TYPE_CHECKING:
    from retrodb.format.arrays import Float64Array


@dataclass(frozen=True)
class RegexDefinition(TaggerDefinition):
    """What the scores of a regular expression depend on."""

    kind: ClassVar[str] = "regex"

    pattern: str
    measure: str  # "share" or "count"


@dataclass(frozen=True)
class RegexTagger:
    """Matches of an expression in the syntax of RE2. It is case-sensitive unless it begins with `(?i)`."""

    pattern: str
    measure: str  # "share": the fraction of the words, each match counted as one word; or "count"

    def __post_init__(self) -> None:
        try:
            matches_empty_text = pc.count_substring_regex(pa.array([""]), self.pattern)[0].as_py()
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"not a valid RE2 expression ({error})", where=self.pattern, remedy="RE2 has no look-around."
            ) from error
        if matches_empty_text:
            raise UsageError(
                "this expression matches an empty text", where=self.pattern, remedy="Require at least one character."
            )

    def definition(self) -> RegexDefinition:
        """The expression and the measure."""
        return RegexDefinition(self.pattern, self.measure)

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) the number of matches, or its ratio to the number of words."""
        num_matches = pc.count_substring_regex(texts, self.pattern).to_numpy(zero_copy_only=False).astype(np.int64)
        num_words = count_words(texts, phrase_table([]))[2] if self.measure == "share" else num_matches
        return match_scores(self.measure, num_matches, num_matches, num_words)

    def excerpt(self, text: str) -> list[str]:
        """The matches, if Python also accepts the expression."""
        try:
            return [match[0] for match in re.finditer(self.pattern, text)]
        except re.error:
            return []
