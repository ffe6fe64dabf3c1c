"""The recipe: the TOML file that says what a database is made of, so that one command keeps it up to date.

The tables of the file are the fields of `Recipe`. Paths are relative to the file itself. An unknown key fails, and the
message suggests the nearest name. A recipe that is written and read again is equal.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import shlex
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.config import (
    DedupParams,
    EmbedParams,
    ExportParams,
    IndexParams,
    IngestParams,
    NearDuplicatesParams,
    NeighboursParams,
    TagParams,
    dump_toml,
    from_mapping,
    parse_toml,
    refuse_unknown_keys,
)
from retrodb.errors import ConfigError, MissingStep
from retrodb.store.storage import Storage
from retrodb.view.view import SELF

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECIPE = "recipe.toml"
"""Name of the recipe inside a database. It is not one of the database's own files."""

_HEADER = "# 'retrodb update' follows this recipe. Paths are relative to this file.\n"


@dataclass(frozen=True)
class SourceRecipe(IngestParams):
    """The input files of a source, and how they are read."""

    inputs: tuple[str, ...] = ()  # files, folders and globs
    files_from: tuple[str, ...] = ()  # files with one input per line


@dataclass(frozen=True)
class TestsetRecipe(DedupParams):
    """The files of a test set, and its leak rule."""

    __test__ = False  # pytest: this is not a test class

    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilterRecipe:
    """A filter rule. It applies to all documents, including documents that are added later."""

    where: str  # SQL condition over document columns, metadata and scores
    reason: str | None = None  # name of the deletion


@dataclass(frozen=True)
class HardwareRecipe:
    """The hardware of encoders and classifiers."""

    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None  # tokens per batch


@dataclass(frozen=True)
class TableRecipe(NeighboursParams):
    """A neighbour table."""

    queries: str = SELF  # query set
    space: str | None = None  # None is the default space


@dataclass(frozen=True, kw_only=True)
class ExportRecipe(ExportParams):
    """An export of neighbour tables that is kept up to date."""

    to: str  # export format
    out: str
    table: str | Mapping[str, str] | None = None  # one table; for Megatron also train, valid and test with their tables


@dataclass(frozen=True)
class HooksRecipe:
    """Command lines to run at the end of an update, without a shell."""

    on_success: str | None = None  # also runs if nothing was new
    on_failure: str | None = None


@dataclass(frozen=True)
class MetricsRecipe:
    """The file with metrics for Prometheus."""

    file: str | None = None  # the textfile collector of node_exporter reads files that end in .prom


@dataclass(frozen=True)
class Recipe:
    """Everything that an update does. What else is in the database is kept up to date too."""

    sources: Mapping[str, SourceRecipe] = field(default_factory=dict)
    testsets: Mapping[str, TestsetRecipe] = field(default_factory=dict)
    near_duplicates: NearDuplicatesParams | None = None
    taggers: Mapping[str, TagParams] = field(default_factory=dict)
    filters: tuple[FilterRecipe, ...] = ()
    embed: HardwareRecipe = HardwareRecipe()
    spaces: Mapping[str, EmbedParams] = field(default_factory=dict)  # in addition to the default space
    index: IndexParams = field(default_factory=IndexParams)
    neighbours: Mapping[str, TableRecipe] = field(default_factory=dict)
    exports: tuple[ExportRecipe, ...] = ()
    hooks: HooksRecipe = HooksRecipe()
    metrics: MetricsRecipe = MetricsRecipe()


def load_recipe(storage: Storage, config: str | Path | None = None) -> Recipe:
    """Read a recipe file, or the recipe inside the database. Its paths become absolute.

    Raises:
        MissingStep: the database has no recipe.
        ConfigError: the file cannot be read, or is not a valid recipe.
    """
    if config is None:
        if not storage.exists(RECIPE):
            raise MissingStep(
                f"there is no {RECIPE}",
                where=storage.url,
                remedy="Give a recipe with '--config FILE', or copy one into the database; 'retrodb build' writes one.",
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
        raise ConfigError("not UTF-8 text", where=where, remedy="Save it as TOML in UTF-8.") from error
    folder = "." if "://" in where else os.path.dirname(where)
    return resolved(recipe, os.path.abspath(folder))


def parse_recipe(text: str, *, where: str) -> Recipe:
    """Read the recipe in a TOML text. Its paths stay as they are.

    Raises:
        ConfigError: naming the table and key that is wrong.
    """
    values = parse_toml(text, where=where)
    refuse_unknown_keys(values, [item.name for item in fields(Recipe)], where=where)
    for kind, table, location in _tables_of(values, where):  # one by one, so that a message can name the table
        from_mapping(kind, table, where=location)
    recipe = from_mapping(Recipe, values, where=where)
    for name, source in recipe.sources.items():
        if not source.inputs and not source.files_from:
            raise ConfigError("'inputs' is missing", where=f"{where}, [sources.{name}]")
    for name, testset in recipe.testsets.items():
        if not testset.files:
            raise ConfigError("'files' is missing", where=f"{where}, [testsets.{name}]")
    for hook in (recipe.hooks.on_success, recipe.hooks.on_failure):
        _split_command(hook, where)
    return recipe


def _split_command(hook: str | None, where: str) -> list[str]:
    """The words of a hook's command line; none without a hook. Raises ConfigError for an invalid command line."""
    try:
        words = [] if hook is None else shlex.split(hook)
    except ValueError as error:
        raise ConfigError(f"{hook!r} is not a command line ({error})", where=f"{where}, [hooks]") from error
    if hook is not None and not words:
        raise ConfigError("an empty command line", where=f"{where}, [hooks]", remedy="Remove this key.")
    return words


def _tables_of(
    values: Mapping[str, object], where: str
) -> Iterator[tuple[type[DataclassInstance], dict[str, object], str]]:
    """Every table of a recipe: its class, its keys and its location. A source's table gets the source's name as a key."""
    hints = typing.get_type_hints(Recipe)
    for key, value in values.items():
        shape, choices = typing.get_origin(hints[key]), (*typing.get_args(hints[key]), hints[key])
        [kind] = [choice for choice in choices if isinstance(choice, type) and dataclasses.is_dataclass(choice)]
        if shape is tuple:
            if not isinstance(value, list):
                raise ConfigError(f"'{key}' must be a list of tables", where=where, remedy=f"Write [[{key}]].")
            for number, row in enumerate(value, 1):
                location = f"{where}, [[{key}]] number {number}"
                yield kind, _table(kind, row, location), location
        elif shape is Mapping:
            if not isinstance(value, dict):
                raise ConfigError(f"'{key}' must be tables with names", where=where, remedy=f"Write [{key}.NAME].")
            for name, row in value.items():
                location = f"{where}, [{key}.{name}]"
                table = _table(kind, row, location)
                if kind is SourceRecipe:
                    _add_source(table, name, location)
                yield kind, table, location
        else:
            location = f"{where}, [{key}]"
            yield kind, _table(kind, value, location), location


def _table(kind: type[DataclassInstance], value: object, where: str) -> dict[str, object]:
    if isinstance(value, dict):
        return value
    keys = ", ".join(item.name for item in fields(kind) if item.name != "source")
    raise ConfigError(f"must be a table, not {value!r}", where=where, remedy=f"Possible keys: {keys}.")


def _add_source(table: dict[str, object], name: str, where: str) -> None:
    if "source" in table:
        raise ConfigError(
            "unknown key 'source'", where=where, remedy="The name of the table is the name of the source."
        )
    table["source"] = name


def dump_recipe(recipe: Recipe) -> str:
    """The TOML text of a recipe, without values that are the default."""
    return _HEADER + "\n" + dump_toml(dict(_changed_fields(recipe)))


def _changed_fields(table: DataclassInstance) -> Iterator[tuple[str, object]]:
    """Names and plain values of the fields that are not the default. The name of a source is the name of its table."""
    for item in fields(table):
        value = getattr(table, item.name)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if value != default and not (isinstance(table, SourceRecipe) and item.name == "source"):
            yield item.name, _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _plain(table) for name, table in value.items()}
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(_changed_fields(value))
    return value


def resolved(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with absolute paths. The name of a model is a path only if that folder exists."""

    def path(name: str, base: str = folder) -> str:
        return name if "://" in name else os.path.normpath(os.path.join(base, name))

    def paths(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path(name, glob.escape(folder) if glob.has_magic(name) else folder) for name in names)

    def program(line: str | None) -> str | None:
        words = _split_command(line, "")
        return shlex.join([path(words[0]), *words[1:]]) if words and "/" in words[0] else line

    def model(name: str) -> str:
        return path(name) if os.path.isdir(path(name)) else name

    def tagger(params: TagParams) -> TagParams:
        wordlist, hf_model = params.wordlist, params.hf_model
        return replace(params, wordlist=wordlist and path(wordlist), hf_model=hf_model and model(hf_model))

    def export(params: ExportRecipe) -> ExportRecipe:
        cache = params.data_cache_path
        return replace(params, out=path(params.out), data_cache_path=cache and path(cache))

    return replace(
        recipe,
        sources={
            n: replace(s, inputs=paths(s.inputs), files_from=paths(s.files_from)) for n, s in recipe.sources.items()
        },
        testsets={n: replace(t, files=paths(t.files)) for n, t in recipe.testsets.items()},
        taggers={n: tagger(t) for n, t in recipe.taggers.items()},
        spaces={n: replace(s, encoder=model(s.encoder)) for n, s in recipe.spaces.items()},
        exports=tuple(export(e) for e in recipe.exports),
        hooks=HooksRecipe(program(recipe.hooks.on_success), program(recipe.hooks.on_failure)),
        metrics=MetricsRecipe(recipe.metrics.file and path(recipe.metrics.file)),
    )
