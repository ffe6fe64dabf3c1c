"""How the console shows values, and that JSON shows them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from retrodb_cli.output import ConsoleOutput, JsonOutput, format_duration, format_size, format_value


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


def test_console_shows_fields_mappings_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleOutput().result(STATS)
    assert capsys.readouterr().out.splitlines() == [
        "database     my.retrodb",
        "num chunks   12,345",
        "is complete  yes",
        "space        -",
        "dropped:",
        "  empty  3",
        "stages:",
        "  stage  num chunks   elapsed s",
        "  embed       1,024  2 h 10 min",
        "  index           5      500 ms",
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
def test_sizes_read_like_sizes(size_bytes: float, shown: str) -> None:
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
