"""Every public method refuses a text where it wants several, and names the nearest argument for one that it lacks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import retrodb
from retrodb import database, options
from retrodb.database import Database
from retrodb.errors import UsageError

SEQUENCE = re.compile(r"\b(Sequence|tuple)\[str\b")


def functions() -> Iterator[tuple[str, Callable[..., object]]]:
    for name, function in [
        *inspect.getmembers(database, inspect.isfunction),
        *inspect.getmembers(Database, inspect.isfunction),
    ]:
        home = function.__module__
        is_public = not name.startswith("_") and home.startswith(("retrodb.database", "retrodb.facade"))
        if is_public and home not in ("retrodb.facade.base", "retrodb.facade.guard", "retrodb.facade.command_memory"):
            yield name, function


def annotations(function: Callable[..., object]) -> dict[str, str]:
    """The annotations of all parameters, and of the options that are passed by name."""
    known = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            kind = getattr(options, str(parameter.annotation).removeprefix("Unpack[").removesuffix("]"))
            known |= {name: str(annotation) for name, annotation in kind.__annotations__.items()}
        else:
            known[parameter.name] = str(parameter.annotation)
    return known


def call(function: Callable[..., object], **arguments: object) -> object:
    """Call a function or method with these arguments alone: what is missing is noticed later than what is wrong."""
    is_method = "self" in inspect.signature(function).parameters
    return function(object.__new__(Database), **arguments) if is_method else function(**arguments)


FUNCTIONS = dict(functions())
SEQUENCES = [(name, p) for name, f in FUNCTIONS.items() for p, kind in annotations(f).items() if SEQUENCE.search(kind)]
TEXTS = [
    (name, p) for name, f in FUNCTIONS.items() for p, kind in annotations(f).items() if re.search(r"\bstr\b", kind)
]


def test_there_are_parameters_to_check() -> None:
    assert {("purge", "doc_ids"), ("ingest", "inputs"), ("build", "against"), ("neighbours", "exclude")} <= set(
        SEQUENCES
    )
    assert len(FUNCTIONS) > 50


@pytest.mark.parametrize(("name", "parameter"), SEQUENCES)
@pytest.mark.parametrize("value", ["12", "", b"12"])
def test_one_text_is_no_sequence_of_texts(name: str, parameter: str, value: str | bytes) -> None:
    with pytest.raises(UsageError, match=rf"'{parameter}' must be a sequence of texts, not one text"):
        call(FUNCTIONS[name], **{parameter: value})


@pytest.mark.parametrize(("name", "parameter"), SEQUENCES)
def test_elements_are_texts(name: str, parameter: str) -> None:
    with pytest.raises(UsageError, match=f"every element of '{parameter}' must be a text, not 12"):
        call(FUNCTIONS[name], **{parameter: ["a", 12]})


@pytest.mark.parametrize(("name", "parameter"), TEXTS)
def test_texts_are_unicode(name: str, parameter: str) -> None:
    is_sequence = (name, parameter) in SEQUENCES
    with pytest.raises(UsageError, match=rf"'{parameter}' is not Unicode: 'caf\\udce9'"):
        call(FUNCTIONS[name], **{parameter: ["caf\udce9"] if is_sequence else "caf\udce9"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_argument_names_the_nearest(name: str) -> None:
    known = [parameter for parameter in annotations(FUNCTIONS[name]) if parameter != "self"]
    for parameter in known:
        if len(parameter) > 4:
            with pytest.raises(
                UsageError, match=rf"{name}\(\) has no argument '{parameter}q'. Did you mean '{parameter}'"
            ):
                call(FUNCTIONS[name], **{f"{parameter}q": 1})
    with pytest.raises(UsageError, match=rf"{name}\(\) has no argument 'zzzz'"):
        call(FUNCTIONS[name], zzzz=1)


def test_positional_arguments_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Write doc_ids=\['12'\]"):
        Database.purge(object.__new__(Database), "12")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the path of the database is empty"):
        retrodb.open("")
    (tmp_path / "file").write_text("x")
    with pytest.raises(retrodb.errors.NotADatabaseError, match="this is a file"):
        retrodb.open(tmp_path / "file" / "db")
