"""A Python function as a tagger: `module:function`, from a list of texts to a list of numbers.

    # mytagger.py, on the Python path or in the current folder
    def length(texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    retrodb tag DB --name length --python mytagger:length

It is called with some hundred documents at a time and must score each by its own text alone. The module's source is part of the
tagger's identity; what it imports is not.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.errors import InputError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import Float64Array

_BATCH = 256  # documents of a call


@dataclass(frozen=True)
class FunctionTagger:
    """Scores from a function, by its name: another process imports it anew."""

    name: str  # "module:function"
    digest: str  # SHA-256 of the module's source

    def definition(self) -> dict[str, Any]:
        """The function's name and its module's source, by digest."""
        return {"kind": "python", "function": self.name, "digest": self.digest}

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) what the function gives.

        Raises:
            InputError: when it does not give one finite number for every text.
        """
        scores = [np.empty(0)]
        for start in range(0, len(texts), _BATCH):
            batch = texts.slice(start, _BATCH).to_pylist()
            given = self._function(batch)
            try:
                values = np.asarray(given, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise InputError(f"its result is no list of numbers ({error})", where=self.name) from error
            if values.shape != (len(batch),) or not np.isfinite(values).all():
                what = f"{len(batch)} texts gave a result of shape {values.shape}, not as many finite numbers"
                raise InputError(what, where=self.name, remedy="Return one number for every text.")
            scores.append(values)
        return np.concatenate(scores)

    def excerpt(self, text: str) -> list[str]:
        """None: only the function knows."""
        del text
        return []

    @cached_property
    def _function(self) -> Callable[[list[str]], Any]:
        return _find(self.name)


def load_function(name: str) -> FunctionTagger:
    """The tagger of `module:function`.

    Raises:
        UsageError: when there is no such function.
    """
    _find(name)
    source = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return FunctionTagger(name, hashlib.sha256(Path(source).read_bytes() if source else b"").hexdigest())


def _find(name: str) -> Callable[[list[str]], Any]:
    module, _, function = name.partition(":")
    if not (module and function):
        raise UsageError(f"'{name}' is no 'module:function'", remedy="Write --python mytagger:score.")
    here = str(Path.cwd())
    if here not in sys.path:  # where a user's own file lies; behind everything that is installed
        sys.path.append(here)
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the function '{name}' cannot be imported ({error})", remedy="Put its file on the Python path or here."
        ) from error
    if not callable(found):
        raise UsageError(f"'{name}' is no function")
    return found  # type: ignore[no-any-return]
