"""A Python function as a tagger: `module:function`, from a list of texts to a list of numbers.

    # mytagger.py, on the Python path or in the current folder
    def length(texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    retrodb tag DB --name length --python mytagger:length

The function gets up to 256 texts at a time. The score of a text must depend only on that text. The source of the module is
part of the tagger's definition; modules that it imports are not.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias, cast

import numpy as np

from retrodb.errors import InputError, UsageError
from retrodb.screen.definition import TaggerDefinition

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import Float64Array

_BATCH = 256  # documents per call
ScoreFunction: TypeAlias = Callable[[list[str]], object]
"""From texts to a list or an array of as many numbers, which the tagger checks."""


@dataclass(frozen=True)
class FunctionDefinition(TaggerDefinition):
    """What the scores of a function depend on."""

    kind: ClassVar[str] = "python"

    function: str  # "module:function"
    digest: str  # SHA-256 of the module's source


@dataclass(frozen=True)
class FunctionTagger:
    """Scores of a function. It is sent to another process by its name, and imported there."""

    name: str  # "module:function"
    digest: str  # SHA-256 of the module's source

    def definition(self) -> FunctionDefinition:
        """The name of the function and the digest of its module's source."""
        return FunctionDefinition(self.name, self.digest)

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) the result of the function.

        Raises:
            InputError: the result is not one finite number for every text.
        """
        scores = [np.empty(0)]
        for start in range(0, len(texts), _BATCH):
            batch = texts.slice(start, _BATCH).to_pylist()
            result = self._function(batch)
            try:
                values = np.asarray(result, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise InputError(f"the result is not a list of numbers ({error})", where=self.name) from error
            if values.shape != (len(batch),) or not np.isfinite(values).all():
                what = f"the result for {len(batch)} texts has shape {values.shape}, or numbers that are not finite"
                raise InputError(what, where=self.name, remedy="Return one finite number for every text.")
            scores.append(values)
        return np.concatenate(scores)

    def excerpt(self, text: str) -> list[str]:
        """An empty list: a function cannot tell."""
        del text
        return []

    @cached_property
    def _function(self) -> ScoreFunction:
        return _import_function(self.name)


def load_function(name: str) -> FunctionTagger:
    """The tagger of `module:function`.

    Raises:
        UsageError: there is no such function.
    """
    _import_function(name)
    source = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return FunctionTagger(name, hashlib.sha256(Path(source).read_bytes() if source else b"").hexdigest())


def _import_function(name: str) -> ScoreFunction:
    module, _, function = name.partition(":")
    if not (module and function):
        raise UsageError(f"'{name}' is not of the form 'module:function'", remedy="Write --python mytagger:score.")
    here = str(Path.cwd())
    if here not in sys.path:  # for files of the user; after everything that is installed
        sys.path.append(here)
    try:
        score = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the function '{name}' cannot be imported ({error})",
            remedy="Put its file on the Python path or in the current folder.",
        ) from error
    if not callable(score):
        raise UsageError(f"'{name}' is not a function")
    return cast(ScoreFunction, score)
