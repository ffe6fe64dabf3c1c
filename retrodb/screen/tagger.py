"""Taggers give documents scores. The tag stage decides which documents are scored, and stores the scores.

Legend: M documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from retrodb.config import TagParams
from retrodb.errors import UsageError
from retrodb.screen.definition import TaggerDefinition

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import Float64Array

MEASURES = ("share", "count")
"""How matches become a score: the fraction of a document's words that they cover, or their number."""


class Tagger(Protocol):
    """Scores texts. It can be sent to another process."""

    def definition(self) -> TaggerDefinition:
        """What the scores depend on, with digests of the word list or the weights."""
        ...

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) a finite score of each text. It depends only on that text."""
        ...

    def excerpt(self, text: str) -> list[str]:
        """The pieces of a text that raise its score; none if the tagger cannot tell them."""
        ...


def load_tagger(params: TagParams, *, device: str = "auto") -> Tagger:
    """The tagger of these parameters.

    Args:
        device: where a classifier is computed.

    Raises:
        UsageError: none or several kinds are set, or an option that the kind does not have.
        InputError: the word list or the model cannot be read.
    """
    kinds = [name for name in ("wordlist", "regex", "hf_model", "python") if getattr(params, name) is not None]
    if len(kinds) != 1:
        given = " and ".join(kinds) or "nothing"
        remedy = "Give one of --wordlist, --regex, --hf-model and --python."
        raise UsageError(f"a tagger needs exactly one of these options, but got {given}", remedy=remedy)
    if params.label is not None and params.hf_model is None:
        raise UsageError("only a classifier has labels", remedy="Use --label only with --hf-model.")
    if params.measure not in MEASURES:
        raise UsageError(f"unknown measure '{params.measure}'", remedy=f"Use {' or '.join(MEASURES)}.")
    # Each kind is imported when it is used, so that a word list does not load torch.
    if params.wordlist is not None:
        from retrodb.screen.wordlist import read_word_list

        return read_word_list(params.wordlist, params.measure)
    if params.regex is not None:
        from retrodb.screen.regex import RegexTagger

        return RegexTagger(params.regex, params.measure)
    if params.hf_model is not None:
        from retrodb.screen.classifier import load_classifier

        return load_classifier(params.hf_model, params.label, device)
    from retrodb.screen.function import load_function

    assert params.python is not None
    return load_function(params.python)
