"""The options of methods are the fields of the parameter classes, and every method names its options."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from dataclasses import fields

import pytest

from retrodb import config, database, options
from retrodb.config import IngestParams, NeighboursParams, from_mapping
from retrodb.errors import ConfigError

PAIRS = {
    name: (getattr(config, f"{name}Params"), getattr(options, f"{name}Options"))
    for name in (
        "Init", "Ingest", "Dedup", "NearDuplicates", "Tag", "Embed", "Index", "Neighbours", "Validate", "RetroTrain", "Export",
    )
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_options_have_the_names_and_types_of_their_parameters(name: str) -> None:
    params, keywords = PAIRS[name]
    hints = typing.get_type_hints(params)
    assert typing.get_type_hints(keywords) == {each.name: hints[each.name] for each in fields(params)}


def test_every_parameter_class_has_options() -> None:
    assert {name for name in vars(config) if name.endswith("Params")} == {f"{name}Params" for name in PAIRS}


def public_functions() -> Iterator[object]:
    for namespace in (database, database.Database):
        for name, value in inspect.getmembers(namespace, inspect.isfunction):
            if not name.startswith("_") and value.__module__.startswith(("retrodb.database", "retrodb.facade")):
                yield value


def test_no_method_takes_options_of_any_kind() -> None:
    """`**options` of a public method is always `Unpack` of a class in `retrodb.options`."""
    loose = []
    for function in public_functions():
        for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
            is_typed = str(parameter.annotation).startswith("Unpack[")
            if parameter.kind is parameter.VAR_POSITIONAL or (parameter.kind is parameter.VAR_KEYWORD and not is_typed):
                loose.append(f"{function}: {parameter}")
    assert not loose


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 2, "exlude": ["document"]}, "here: unknown key 'exlude'. Did you mean 'exclude'?"),
        ({"zzzz": 1}, "here: unknown key 'zzzz'. Known keys: exact, exclude, k,"),
        ({"k": "2"}, "here: 'k' must be an integer, not '2'."),
        ({"k": True}, "here: 'k' must be an integer, not True."),
        ({"k": 2.0}, "here: 'k' must be an integer, not 2.0."),
        ({"sample": "all"}, "here: 'sample' must be a number, not 'all'."),
        ({"exact": 1}, "here: 'exact' must be true or false, not 1."),
        ({"where": 3}, "here: 'where' must be a string, not 3."),
        ({"exclude": "document"}, "here: 'exclude' must be a list, not 'document'."),
        ({"exclude": ["document", 3]}, "here: every element of 'exclude' must be a string, not ['document', 3]."),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(NeighboursParams, values, where="here")
    assert str(caught.value).startswith(message)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match="here: 'source' is missing"):
        from_mapping(IngestParams, {}, where="here")


def test_whole_numbers_are_numbers_and_lists_become_tuples() -> None:
    params = from_mapping(NeighboursParams, {"sample": 1, "exclude": ["a", "b"], "where": None}, where="here")
    assert (params.sample, params.exclude, params.where) == (1.0, ("a", "b"), None)
    assert vars(params) == vars(NeighboursParams(sample=1.0, exclude=("a", "b")))
