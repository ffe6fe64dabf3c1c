"""What every public method checks about its arguments before it runs.

Python takes a text for a sequence of its characters, so that `purge("12")` would purge the documents 1 and 2.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from retrodb import options
from retrodb.errors import UsageError
from retrodb.printable import escape, has_lone_surrogate

P = ParamSpec("P")
R = TypeVar("R")

_SEQUENCE = re.compile(r"\b(?:Sequence|tuple)\[(str\b[^\]]*)")
_UNPACK = re.compile(r"Unpack\[(\w+)\]")


@dataclass(frozen=True)
class _Parameters:
    """The parameters of a function, as far as they are checked."""

    positional: tuple[str, ...]
    annotations: Mapping[str, str]  # of all parameters, and of the options that are passed by name


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with a check of its arguments.

    Raises:
        UsageError: for an argument that does not exist, a text where a sequence of texts is expected, an element that is
            no text, or a text that is not Unicode.
    """

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        parameters = _parameters(function)
        _refuse_unknown(function.__name__, kwargs, parameters.annotations)
        for name, value in (*zip(parameters.positional, args, strict=False), *kwargs.items()):
            _check(name, value, parameters.annotations[name])
        return function(*args, **kwargs)

    return checked


@cache
def _parameters(function: Callable[..., object]) -> _Parameters:  # type: ignore[explicit-any]
    annotations, positional = dict[str, str](), list[str]()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            if unpacked := _UNPACK.search(str(parameter.annotation)):
                kind = getattr(options, unpacked[1])
                annotations |= {name: str(annotation) for name, annotation in kind.__annotations__.items()}
            continue
        annotations[parameter.name] = str(parameter.annotation)
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(parameter.name)
    return _Parameters(tuple(positional), annotations)


def _refuse_unknown(function: str, names: Mapping[str, object], known: Mapping[str, str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            others = ", ".join(sorted(set(known) - {"self"}))
            remedy = f"Did you mean '{near[0]}'?" if near else f"Its arguments are: {others}."
            raise UsageError(f"{function}() has no argument '{escape(name)}'", remedy=remedy)


def _check(name: str, value: object, annotation: str) -> None:
    sequence = _SEQUENCE.search(annotation)
    if sequence and isinstance(value, str | bytes | os.PathLike):
        shown = os.fspath(value) if isinstance(value, os.PathLike) else value
        what = f"'{name}' must be a sequence of texts, not one text"
        raise UsageError(what, remedy=f"Write {name}=[{escape(ascii(shown))}].")
    if sequence and isinstance(value, list | tuple | set | frozenset):
        is_path_allowed = "Path" in sequence[1]
        for element in value:
            is_name = isinstance(element, str) or type(element).__name__ == "DocumentName"
            if not is_name and not (is_path_allowed and isinstance(element, os.PathLike)):
                raise UsageError(f"every element of '{name}' must be a text, not {escape(repr(element))}")
    for text in _texts(value):
        if has_lone_surrogate(text):
            what = f"'{name}' is not Unicode: '{escape(text)}'"
            raise UsageError(what, remedy="Use UTF-8 for names, ids, texts and paths.")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, os.PathLike):
        yield str(value)
    elif isinstance(value, list | tuple):
        yield from (text for element in value for text in _texts(element))
