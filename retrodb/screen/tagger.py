"""Taggers: what gives a document a score. Where the scores are kept, and for which documents, is the business of stage tag.

Legend: M documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from retrodb.config import TagParams
from retrodb.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import Float64Array

MEASURES = ("share", "count")
"""How matches become a score: the share of a document's words that they cover, or their number."""


class Tagger(Protocol):
    """Scores texts. It can be sent to another process."""

    def definition(self) -> dict[str, Any]:
        """Plain values that say what gives the scores, digests of word list or weights among them: equal for equal scores."""
        ...

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) a finite score of each text; it depends on that text alone."""
        ...

    def excerpt(self, text: str) -> list[str]:
        """The pieces of a text that raise its score, as they stand in it; none where that cannot be said."""
        ...


def load_tagger(params: TagParams, *, device: str = "auto") -> Tagger:
    """The tagger that parameters ask for.

    Raises:
        UsageError: for none or more than one kind, or an option that the kind has not.
        InputError: for a word list or a model that cannot be read.
    """
    kinds = [name for name in ("wordlist", "regex", "hf_model", "python") if getattr(params, name) is not None]
    if len(kinds) != 1:
        asked = " and ".join(kinds) or "nothing"
        remedy = "Give one of --wordlist, --regex, --hf-model and --python."
        raise UsageError(f"a tagger is made of one thing, not of {asked}", remedy=remedy)
    if params.label is not None and params.hf_model is None:
        raise UsageError("a label is one of a classifier", remedy="Give --label with --hf-model only.")
    if params.measure not in MEASURES:
        raise UsageError(f"unknown measure '{params.measure}'", remedy=f"Use {' or '.join(MEASURES)}.")
    # Imported by kind: a word list must not load torch.
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
