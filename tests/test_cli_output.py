"""How the console shows values, and that JSON shows them all."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from retrodb import database
from retrodb_cli.output import ConsoleOutput, JsonOutput, format_duration, format_size, format_value, message_type


@dataclass(frozen=True)
class Stage:
    stage: str
    num_chunks: int
    elapsed_s: float


@dataclass(frozen=True)
class StatsResult:
    database: Path
    num_chunks: int
    is_complete: bool
    space: str | None
    dropped: Mapping[str, int] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()


STATS = StatsResult(
    Path("my.retrodb"), 12345, True, None, {"empty": 3}, (Stage("embed", 1024, 7800.0), Stage("index", 5, 0.5))
)


def test_columns_of_a_query_keep_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleOutput().table("sql_row", ["doc_id", "num_chunks"], [("a", 3)])
    assert capsys.readouterr().out.splitlines()[0] == "doc_id  num_chunks"


def test_console_shows_fields_mappings_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleOutput().result(STATS)
    assert capsys.readouterr().out.splitlines() == [
        "database     my.retrodb",
        "chunks       12,345",
        "is complete  yes",
        "space        -",
        "dropped:",
        "  empty  3",
        "stages:",
        "  stage  chunks   elapsed s",
        "  embed   1,024  2 h 10 min",
        "  index       5      500 ms",
    ]


def test_json_has_every_field_with_its_plain_value(capsys: pytest.CaptureFixture[str]) -> None:
    JsonOutput().rows([STATS])
    assert json.loads(capsys.readouterr().out) == {
        "message_type": "stats_result",
        "database": "my.retrodb",
        "num_chunks": 12345,
        "is_complete": True,
        "space": None,
        "dropped": {"empty": 3},
        "stages": [
            {"stage": "embed", "num_chunks": 1024, "elapsed_s": 7800.0},
            {"stage": "index", "num_chunks": 5, "elapsed_s": 0.5},
        ],
    }


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (4.2e12, "4.2 TB"),
        (3e18, "3,000.0 PB"),
    ],
)
def test_sizes_have_decimal_units(size_bytes: float, shown: str) -> None:
    assert format_size(size_bytes) == shown


@pytest.mark.parametrize(
    ("elapsed_s", "shown"),
    [
        (0.0, "0 ms"),
        (0.012, "12 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_have_two_units_at_most(elapsed_s: float, shown: str) -> None:
    assert format_duration(elapsed_s) == shown


def test_sequences_are_listed_and_fractions_rounded() -> None:
    assert format_value("against", ("a", "b")) == "a, b"
    assert format_value("against", ()) == "-"
    assert format_value("recall", 0.98765) == "0.9877"


def test_no_color_is_respected(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda stream, color=None: color is False)
    ConsoleOutput().error(1, "gone")
    assert "\x1b[31m" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    ConsoleOutput().error(1, "gone")
    assert capsys.readouterr().err == "Error: gone\n"


def printed_classes() -> set[type]:
    """The dataclasses that commands print: results of the methods of `Database`, and what they report on the way."""
    modules = {inspect.getmodule(base) for base in database.Database.__mro__[:-1]} | {database}
    classes = {kind for module in modules if module for kind in annotated_classes(Path(str(module.__file__)))}
    assert {"UpdateStep", "SearchHit", "Stats", "BuildPlan", "DemoStage"} <= {kind.__name__ for kind in classes}
    return classes


def annotated_classes(path: Path) -> Iterator[type]:
    """The dataclasses that a module imports under TYPE_CHECKING, for its annotations."""
    for block in ast.parse(path.read_text()).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in block.body:
                assert isinstance(node, ast.ImportFrom), ast.unparse(node)
                if not str(node.module).startswith("retrodb"):
                    continue
                module = importlib.import_module(str(node.module))
                values = [getattr(module, alias.name) for alias in node.names]
                yield from (value for value in values if isinstance(value, type) and dataclasses.is_dataclass(value))


def test_the_message_type_of_every_result_is_unique() -> None:
    classes = printed_classes()
    nested = {type for kind in classes for type in nested_rows(kind)}
    counts = Counter(message_type(kind) for kind in classes | nested)
    assert [name for name, count in counts.items() if count > 1] == []
    assert {"table_repair_result", "database_repair_result", "diff_row"} <= counts.keys()


def nested_rows(kind: type) -> Iterator[type]:
    """The dataclasses in tuples and lists of a result: some commands print these instead of the result."""
    for hint in typing.get_type_hints(kind).values():
        for argument in typing.get_args(hint):
            if isinstance(argument, type) and dataclasses.is_dataclass(argument):
                yield argument
