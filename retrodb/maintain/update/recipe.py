"""The recipe: what a database is made of, so that one command keeps it up to date.

A TOML file whose tables are the fields of `Recipe`. Paths in it are relative to the file itself; an unknown key fails
with the nearest name, and what is written reads back equal.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import shlex
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

from retrodb.config import (
    DedupParams,
    EmbedParams,
    IndexParams,
    IngestParams,
    NearDuplicatesParams,
    NeighboursParams,
    TagParams,
    dump_toml,
    from_mapping,
    parse_toml,
)
from retrodb.errors import ConfigError, MissingStep
from retrodb.store.storage import Storage
from retrodb.view.view import SELF

RECIPE = "recipe.toml"
"""The recipe inside a database: beside its files, never one of them."""

_HEADER = "# What 'retrodb update' keeps this database up to date with. Paths are relative to this file.\n"


@dataclass(frozen=True)
class SourceRecipe(IngestParams):
    """Where the documents of a source come from, and how they are read."""

    inputs: tuple[str, ...] = ()  # files, folders and globs
    files_from: tuple[str, ...] = ()  # files that name one input a line


@dataclass(frozen=True)
class TestsetRecipe(DedupParams):
    """The files of a test set, and its leak rule."""

    __test__ = False  # pytest: no test class

    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilterRecipe:
    """A rule that holds for all documents, also those that come later."""

    where: str  # SQL condition over document columns, metadata and attributes
    reason: str | None = None  # of the tombstones


@dataclass(frozen=True)
class HardwareRecipe:
    """What encoders and classifiers run on."""

    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None  # token budget of a batch


@dataclass(frozen=True)
class TableRecipe(NeighboursParams):
    """A neighbour table."""

    queries: str = SELF  # query set
    space: str | None = None  # None is the default space


@dataclass(frozen=True)
class ExportRecipe:
    """An export that follows its table."""

    to: str  # format
    out: str
    table: str | None = None


@dataclass(frozen=True)
class HooksRecipe:
    """Command lines to run at the end, without a shell."""

    on_success: str | None = None  # also when nothing was new
    on_failure: str | None = None


@dataclass(frozen=True)
class MetricsRecipe:
    """Where to write how the database is, for Prometheus."""

    file: str | None = None  # for node_exporter's textfile collector it ends in .prom


@dataclass(frozen=True)
class Recipe:
    """All that an update does; what the database has beside it is kept up to date too."""

    sources: Mapping[str, SourceRecipe] = field(default_factory=dict)
    testsets: Mapping[str, TestsetRecipe] = field(default_factory=dict)
    near_duplicates: NearDuplicatesParams | None = None
    taggers: Mapping[str, TagParams] = field(default_factory=dict)
    filters: tuple[FilterRecipe, ...] = ()
    embed: HardwareRecipe = HardwareRecipe()
    spaces: Mapping[str, EmbedParams] = field(default_factory=dict)  # beside the default one
    index: IndexParams = field(default_factory=IndexParams)
    neighbours: Mapping[str, TableRecipe] = field(default_factory=dict)
    exports: tuple[ExportRecipe, ...] = ()
    hooks: HooksRecipe = HooksRecipe()
    metrics: MetricsRecipe = MetricsRecipe()


def load_recipe(storage: Storage, config: str | Path | None = None) -> Recipe:
    """The recipe of a file, or the one inside the database; its paths made absolute.

    Raises:
        MissingStep: when the database has none.
        ConfigError: for a file that is no recipe.
    """
    if config is None:
        if not storage.exists(RECIPE):
            raise MissingStep(
                f"there is no {RECIPE}",
                where=storage.url,
                remedy="Name one with '--config FILE', or put one into the database; 'retrodb build' writes it.",
            )
        data, where = storage.read(RECIPE), f"{storage.url}/{RECIPE}"
    else:
        try:
            data, where = Path(config).read_bytes(), str(config)
        except OSError as error:
            raise ConfigError(error.strerror or str(error), where=str(config), remedy="Check the path.") from error
    try:
        recipe = parse_recipe(data.decode(), where=where)
    except UnicodeDecodeError as error:
        raise ConfigError("no UTF-8 text", where=where, remedy="Write it as TOML.") from error
    folder = "." if "://" in where else os.path.dirname(where)
    return resolved(recipe, os.path.abspath(folder))


def parse_recipe(text: str, *, where: str) -> Recipe:
    """The recipe of a TOML text, its paths as they stand there.

    Raises:
        ConfigError: naming the table and key that is wrong.
    """
    hints = typing.get_type_hints(Recipe)
    tables = parse_toml(text, where=where)
    values = {key: _parse(hints.get(key), key, value, where) for key, value in tables.items()}
    recipe = from_mapping(Recipe, values, where=where)
    for kind, files in (("sources", "inputs"), ("testsets", "files")):
        for name, table in getattr(recipe, kind).items():
            if not getattr(table, files) and not getattr(table, "files_from", ()):
                raise ConfigError(f"'{files}' is missing", where=f"{where}, [{kind}.{name}]")
    for hook in (recipe.hooks.on_success, recipe.hooks.on_failure):
        _words(hook, where)
    return recipe


def _words(hook: str | None, where: str) -> list[str]:
    """The words of a hook's command line. Raises ConfigError where there are none."""
    try:
        words = [] if hook is None else shlex.split(hook)
    except ValueError as error:
        raise ConfigError(f"{hook!r} is no command line ({error})", where=f"{where}, [hooks]") from error
    if hook is not None and not words:
        raise ConfigError("an empty command line", where=f"{where}, [hooks]", remedy="Leave it out.")
    return words


def _parse(hint: Any, key: str, value: Any, where: str) -> Any:
    """A value of a recipe's field: a table, named tables, or a list of them."""
    kinds = [kind for kind in typing.get_args(hint) or [hint] if dataclasses.is_dataclass(kind)]
    if not kinds:  # no such field: `from_mapping` says which is meant
        return value
    [kind] = kinds
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"'{key}' must be a list of tables", where=where, remedy=f"Write [[{key}]].")
        return [_table(kind, row, f"{where}, [[{key}]] number {n}") for n, row in enumerate(value, 1)]
    if NoneType in typing.get_args(hint) or hint is kind:
        return _table(kind, value, f"{where}, [{key}]")
    if not isinstance(value, dict):
        raise ConfigError(f"'{key}' must be tables with names", where=where, remedy=f"Write [{key}.NAME].")
    return {name: _table(kind, row, f"{where}, [{key}.{name}]", name) for name, row in value.items()}


def _table(kind: Any, value: Any, where: str, name: str = "") -> Any:
    if not isinstance(value, dict):
        keys = ", ".join(each.name for each in fields(kind) if each.name != "source")
        raise ConfigError(f"must be a table, not {value!r}", where=where, remedy=f"Its keys may be: {keys}.")
    if kind is not SourceRecipe:
        return from_mapping(kind, value, where=where)
    if "source" in value:
        raise ConfigError("unknown key 'source'", where=where, remedy="The table's name is the source's.")
    return from_mapping(SourceRecipe, {"source": name, **value}, where=where)


def dump_recipe(recipe: Recipe) -> str:
    """The TOML text of a recipe: what differs from the defaults."""
    return _HEADER + "\n" + dump_toml(_plain(recipe))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if not dataclasses.is_dataclass(value):
        return value
    given = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != _default(f)}
    if isinstance(value, SourceRecipe):
        del given["source"]
    return {name: _plain(each) for name, each in given.items()}


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()


def resolved(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with its paths made absolute; a folder of a model is one only if it is there."""

    def path(name: str, base: str = folder) -> str:
        return os.path.normpath(os.path.join(base, name))

    def paths(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path(name, glob.escape(folder) if glob.has_magic(name) else folder) for name in names)

    def program(line: str | None) -> str | None:
        words = _words(line, "")
        return shlex.join([path(words[0]), *words[1:]]) if words and "/" in words[0] else line

    def model(name: str) -> str:
        return path(name) if os.path.isdir(path(name)) else name

    def tagger(each: TagParams) -> TagParams:
        wordlist, hf_model = each.wordlist, each.hf_model
        return replace(each, wordlist=wordlist and path(wordlist), hf_model=hf_model and model(hf_model))

    return replace(
        recipe,
        sources={
            n: replace(s, inputs=paths(s.inputs), files_from=paths(s.files_from)) for n, s in recipe.sources.items()
        },
        testsets={n: replace(t, files=paths(t.files)) for n, t in recipe.testsets.items()},
        taggers={n: tagger(t) for n, t in recipe.taggers.items()},
        spaces={n: replace(s, encoder=model(s.encoder)) for n, s in recipe.spaces.items()},
        exports=tuple(replace(e, out=path(e.out)) for e in recipe.exports),
        hooks=HooksRecipe(program(recipe.hooks.on_success), program(recipe.hooks.on_failure)),
        metrics=MetricsRecipe(recipe.metrics.file and path(recipe.metrics.file)),
    )


def options_of(table: Any, params: type) -> dict[str, Any]:
    """The fields of a table that are a stage's parameters, as keyword arguments of the stage's method."""
    return {f.name: getattr(table, f.name) for f in fields(params)}
