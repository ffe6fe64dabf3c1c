"""The token ids that a tokenizer has: the check of every token that a trainer's file brings into a query set."""

from __future__ import annotations

import numpy as np

from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.special_tokens import all_special_ids
from retrodb.errors import MismatchError
from retrodb.format.arrays import AnyArray


class KnownTokens:
    """The ids below the size of the vocabulary, and those of special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocab_size = tokenizer.vocab_size
        self._special = np.array(sorted(all_special_ids(tokenizer.to_bytes())), dtype=np.int64)

    def refuse_others(self, tokens: AnyArray, *, where: str, place: str) -> None:
        """Raises MismatchError for the first token id that the tokenizer does not have.

        Args:
            tokens: (T,) integers of any dtype.
            where: the file that they come from.
            place: of the tokens in this file, such as "row 3".
        """
        is_unknown = (tokens < 0) | (tokens >= self._vocab_size)
        if not is_unknown.any():
            return
        is_unknown &= ~np.isin(tokens, self._special)
        if is_unknown.any():
            position = int(is_unknown.argmax())
            raise MismatchError(
                f"{place}, token {position}: the id {int(tokens[position])} is not in the tokenizer, whose vocabulary has "
                f"the ids 0 to {self._vocab_size - 1}",
                where=where,
                remedy="Use the tokenizer that made the file.",
            )
